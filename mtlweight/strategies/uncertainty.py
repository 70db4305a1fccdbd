"""Uncertainty weighting: weights learned along with the network, or set to their optimum."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlweight.loss_strategy import LossStrategy, LossWeighting
from mtlweight.options import Finite, Options, Positive, Tasks
from mtlweight.running import Adam
from mtlweight.strategies.geometric import safe_inverse
from mtlweight.strategies.loss_trends import soft_shares


class _Learned(LossStrategy):
    """Learns one number s per task, in [-10, 10], by the same scalar as the network."""

    learned: ClassVar[str]  # the buffer that holds s

    def __init__(
        self,
        tasks: Tasks,
        *,
        learning_rate: Positive = 0.025,
        initial: Finite = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(tasks, **options)
        s = torch.full((self.num_tasks,), float(initial))
        self.register_buffer(self.learned, s)
        self.adam = Adam(self.num_tasks, learning_rate)
        self.weights = self.weigh(s.clamp(-10, 10))

    @abstractmethod
    def weigh(self, s: Tensor) -> Tensor:
        """Returns the weights `[n]` at s `[n]`."""

    @abstractmethod
    def penalty(self, s: Tensor) -> Tensor:
        """Returns what keeps s `[n]` from making the weights zero, `[n]`."""

    @abstractmethod
    def slope(self, s: Tensor, weighted: Tensor) -> Tensor:
        """Returns the derivative by s, given the weighted losses `[n]`, `[n]`."""

    def scalarize(self, losses: Tensor) -> Tensor:
        kept = getattr(self, self.learned)
        s = kept[self.present].clamp(-10, 10).to(losses)
        weighted = self.weigh(s) * losses
        slope = self.slope(s, weighted.detach())
        setattr(self, self.learned, self.adam.step(kept, self.present, slope).clamp(-10, 10))
        return (weighted + self.penalty(s)).sum()


class UW(_Learned):
    r"""Uncertainty weighting: learns one log-variance per task, along with the network.

    $$\mathcal{L} = \tfrac12 \sum_i \big( e^{-s_i} L_i + s_i \big), \qquad w_i = \tfrac12 e^{-s_i}$$

    At the optimum $e^{s_i} = L_i$. The strategy learns $s$ by itself, with an Adam of its own:
    nothing to hand to the optimizer, and no weight decay that pulls the weights to one half. $s$ is
    used within [-10, 10] (ours), so that a loss at or below zero does not run away with it.

    Use it when losses differ in scale and the step is noisy: it tends to $1 / (2 L_i)$, smoothed
    over some hundred steps. Not when training is short: weights start equal and take their time;
    `UWO` is there at once.

    Args:
        tasks: The names of the tasks, or their number.
        learning_rate: That of $s$.
        initial: $s$ at the start.
        **options: See `Options`.

    Attributes:
        log_variances: $s$, `[T]`.

    Source: Kendall, Gal & Cipolla, *Multi-task learning using uncertainty to weigh losses*, CVPR
    2018, in the form for regression, for all tasks.
    """

    learned = "log_variances"
    log_variances: Tensor

    def weigh(self, s: Tensor) -> Tensor:
        return (-s).exp() / 2

    def penalty(self, s: Tensor) -> Tensor:
        return s / 2

    def slope(self, s: Tensor, weighted: Tensor) -> Tensor:
        return 0.5 - weighted


class IMTLL(_Learned):
    r"""The loss half of impartial multi-task learning: scales every loss to one.

    $$\mathcal{L} = \sum_i \big( e^{s_i} L_i - s_i \big), \qquad w_i = e^{s_i}$$

    At the optimum $e^{s_i} L_i = 1$, where the gradient is that of $\sum_i \log L_i$. Starts as the
    sum of the losses. Learns $s$ by itself, and uses it within [-10, 10], as `UW` does.

    Use it when losses differ in scale and the plain sum is a good start; its scalar is twice that
    of `UW` with $-s$ for $s$. Not when training is short: like `UW`, it takes its time.

    Args:
        tasks: The names of the tasks, or their number.
        learning_rate: That of $s$.
        initial: $s$ at the start.
        **options: See `Options`.

    Attributes:
        log_scales: $s$, `[T]`.

    Source: Liu et al., *Towards impartial multi-task learning*, ICLR 2021, IMTL-L with base e.
    """

    learned = "log_scales"
    log_scales: Tensor

    def weigh(self, s: Tensor) -> Tensor:
        return s.exp()

    def penalty(self, s: Tensor) -> Tensor:
        return -s

    def slope(self, s: Tensor, weighted: Tensor) -> Tensor:
        return weighted - 1


class RevisedUW(_Learned):
    r"""Revised uncertainty weighting: a scalar that is never negative.

    $$\mathcal{L} = \sum_i \Big( \frac{L_i}{2 c_i^2} + \log(1 + c_i^2) \Big), \qquad
    w_i = \frac{1}{2 c_i^2}$$

    At the optimum $c_i^2 = (L_i + \sqrt{L_i^2 + 8 L_i}) / 4$: small losses get the weight
    $1/\sqrt{2 L_i}$, large ones $1/L_i$. Learns $s_i = \log c_i^2$ (ours) by itself, from $c = 1$,
    and uses it within [-10, 10], as `UW` does.

    Use it when a total that goes below zero, as that of `UW` does, upsets logs or schedulers, or
    when small losses should not get weights as large as their inverse. Not when the weights should
    make up for the scales of the losses: it does so for large losses alone.

    Args:
        tasks: The names of the tasks, or their number.
        learning_rate: That of $s$.
        initial: $s$ at the start.
        **options: See `Options`.

    Attributes:
        log_variances: $s$, `[T]`.

    Source: Liebel & Körner, *Auxiliary tasks in multi-task learning*, arXiv 1805.06334. The
    constants are known to us from general knowledge, not from the paper's own page.
    """

    learned = "log_variances"
    log_variances: Tensor

    def weigh(self, s: Tensor) -> Tensor:
        return (-s).exp() / 2

    def penalty(self, s: Tensor) -> Tensor:
        return F.softplus(s)

    def slope(self, s: Tensor, weighted: Tensor) -> Tensor:
        return s.sigmoid() - weighted


class UWO(LossWeighting):
    r"""Optimal uncertainty weighting: the weights that `UW` would learn, at every step.

    $$w_i = 1 / L_i$$

    with the weights held constant in the derivative, so that the scalar is worth the number of
    tasks, and its gradient is that of `ScaleInvariant`. A loss below $10^{-8}$ of the largest has
    no say in the step (ours).

    Use it when `UW` is wanted without its inertia. Not when a loss comes near zero or is noisy:
    the weight is as noisy as its inverse, for which `UWSO` is the authors' remedy.

    Raises:
        ValueError: A loss is negative.

    Source: Kirchdorfer et al., *Analytical uncertainty-based loss weighting in multi-task
    learning*, arXiv 2408.07985.
    """

    @property
    def nonnegative_losses(self) -> bool:
        """A negative loss would get a negative weight."""
        return True

    def weights_of(self, losses: Tensor) -> Tensor:
        return safe_inverse(losses)


class UWSO(LossWeighting):
    r"""Soft optimal uncertainty weighting: a softmax of the inverse losses.

    $$w = \operatorname{softmax}\big(1 / (\tau L)\big)$$

    with the weights held constant in the derivative. Ours: no weight falls below $e^{-10}$ of the
    largest, and the inverse of a loss below $10^{-8}$ of the largest counts as zero, since nothing
    is left to learn there.

    Use it when there is time to tune $\tau$ for the losses at hand: small losses lead, by how much
    is up to $\tau$. Not when losses change their order of magnitude in training: $\tau$ has the
    unit of an inverse loss, and the softmax turns from flat to one-hot.

    Args:
        tasks: The names of the tasks, or their number.
        temperature: $\tau$; the larger, the more equal the weights. The authors tune it for each
            data set; 1 is ours.
        **options: See `Options`.

    Raises:
        ValueError: A loss is negative.

    Source: Kirchdorfer et al., *Analytical uncertainty-based loss weighting in multi-task
    learning*, arXiv 2408.07985.
    """

    def __init__(
        self, tasks: Tasks, *, temperature: Positive = 1.0, **options: Unpack[Options]
    ) -> None:
        super().__init__(tasks, **options)
        self.temperature = temperature

    @property
    def nonnegative_losses(self) -> bool:
        """The inverse of a negative loss is no measure of it."""
        return True

    def weights_of(self, losses: Tensor) -> Tensor:
        return soft_shares(safe_inverse(losses), self.temperature)
