"""Scalars that steer the losses along a preferred direction: PBI and COSMOS."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from mtlweight.inputs import Metrics
from mtlweight.loss_strategy import LossStrategy
from mtlweight.options import NonNegative, Options, Tasks
from mtlweight.per_task import per_task, positive


class _Preferring(LossStrategy):
    """What the two have in common: a preference per task, which may change from step to step."""

    preferences: Tensor

    def __init__(
        self, tasks: Tasks, *, preferences: Metrics | None = None, **options: Unpack[Options]
    ) -> None:
        super().__init__(tasks, **options)
        self.register_buffer("preferences", positive_per_task(self.tasks, preferences))

    def set_preferences(self, preferences: Metrics) -> None:
        """Takes new preferences for the steps to come, such as those the network was told.

        Args:
            preferences: One positive number per task: a mapping from task name, or `[T]`.

        Raises:
            OptionError: A preference is missing or not positive.
        """
        self.preferences = positive_per_task(self.tasks, preferences).to(self.preferences)


class PBI(_Preferring):
    r"""Penalty-based boundary intersection: descends along a preferred direction, and stays on it.

    $$d_1 = (L - z^*) \cdot \hat p, \qquad d_2 = \lVert L - z^* - d_1 \hat p \rVert, \qquad
    \mathcal{L} = d_1 + \theta\, d_2, \qquad \hat p = p / \lVert p \rVert$$

    The weights are $\hat p_i$ plus $\theta$ times the unit vector from the direction to the losses:
    a task whose loss is lower than $p$ wants has a **negative weight**, which raises its loss, and
    $\lVert w \rVert = \sqrt{1 + \theta^2}$ off the direction. Ours: the smoothing of $d_2$ is
    $10^{-6}$ of the largest $|L_i - z^*_i|$, so that on the direction the weights are $\hat p$.

    Use it when a given ratio of the losses is the goal, as when one point of a Pareto front after
    another is looked for. Not when all losses should simply be small: with $\theta$ above one it
    makes good tasks worse to keep the ratio, and `rescale="one"` can't stretch a negative sum.

    Args:
        tasks: The names of the tasks, or their number.
        preferences: $p$, the ratio of the losses that is wanted, positive; equal by default. Change
            it later by `set_preferences`.
        theta: $\theta$, the price of leaving the direction.
        ideals: $z^*$, the least that each loss can be; zeros by default.
        **options: See `Options`.

    Attributes:
        preferences: $p$, `[T]`.

    Raises:
        OptionError: A preference or ideal is missing, or a preference is not positive.

    Source: Zhang & Li, *MOEA/D: a multiobjective evolutionary algorithm based on decomposition*,
    IEEE Transactions on Evolutionary Computation 2007, section II-C.
    """

    ideals: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        preferences: Metrics | None = None,
        theta: NonNegative = 5.0,
        ideals: Metrics | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(tasks, preferences=preferences, **options)
        self.theta = theta
        self.register_buffer("ideals", ideals_of(self.tasks, ideals), persistent=False)

    def scalarize(self, losses: Tensor) -> Tensor:
        f = losses - self.ideals[self.present].to(losses)
        p = self.preferences[self.present].to(losses)
        p = p / p.square().sum().sqrt()
        d1 = (f * p).sum()
        size = f.detach().abs().max()
        size = torch.where(size > 0, size, 1.0)
        d2 = size * (((f - d1 * p) / size).square().sum() + 1e-12).sqrt()
        return d1 + self.theta * d2


class COSMOS(_Preferring):
    r"""Conditioned one-shot multi-objective search: the weighted sum, less the cosine with it.

    $$\mathcal{L} = \sum_i p_i L_i - \lambda \cos(p, L), \qquad
    w_i = p_i - \frac{\lambda}{\lVert L \rVert}
    \Big(\frac{p_i}{\lVert p \rVert} - \cos(p, L) \frac{L_i}{\lVert L \rVert}\Big)$$

    with $p$ made to sum to one. A weight may be **negative**, where the cosine gains more by a
    larger loss than the sum loses. The full method draws $p$ anew in each step and also feeds it to
    the network: that is the user's, who tells the strategy by `set_preferences`. The paper tunes
    $\lambda$ from 0.01 to 8, with no default; ours is 1.

    Use it when one network, told the preferences, is to serve many of them. Not when losses have
    different or changing scales: $\lambda$ is in their unit, and the cosine sees the largest alone.

    Args:
        tasks: The names of the tasks, or their number.
        preferences: $p$, positive; equal by default. Change it in each step by `set_preferences`.
        penalty: $\lambda$, in the unit of the losses.
        **options: See `Options`.

    Attributes:
        preferences: $p$ as given, `[T]`.

    Raises:
        OptionError: A preference is missing or not positive.

    Source: Ruchte & Grabocka, *Scalable Pareto front approximation for deep multi-objective
    learning*, ICDM 2021, arXiv 2103.13392.
    """

    def __init__(
        self,
        tasks: Tasks,
        *,
        preferences: Metrics | None = None,
        penalty: NonNegative = 1.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(tasks, preferences=preferences, **options)
        self.penalty = penalty

    def scalarize(self, losses: Tensor) -> Tensor:
        p = self.preferences[self.present].to(losses)
        p = p / p.sum()
        size = losses.detach().abs().max()  # squares of losses may overflow, those of ratios not
        x = losses / torch.where(size > 0, size, 1.0)
        length = torch.where(size > 0, torch.linalg.vector_norm(x), 1.0)
        cosine: Tensor = (p * x).sum() / (torch.linalg.vector_norm(p) * length)
        return (p * losses).sum() - self.penalty * torch.where(size > 0, cosine, 0.0)


def positive_per_task(tasks: tuple[str, ...], given: Metrics | None) -> Tensor:
    """Returns the option `preferences` as a tensor `[T]`; ones by default.

    Raises:
        OptionError: Names the task whose preference is missing or not positive.
    """
    if given is None:
        return torch.ones(len(tasks))
    must = "be positive: to train without a task, leave it out of the losses"
    numbers = per_task(tasks, given, "preferences", positive, must)
    return torch.tensor(list(numbers.values()))


def ideals_of(tasks: tuple[str, ...], given: Metrics | None) -> Tensor:
    """Returns the option `ideals` as a tensor `[T]`; zeros by default.

    Raises:
        OptionError: Names the task whose ideal is missing or not finite.
    """
    if given is None:
        return torch.zeros(len(tasks))
    return torch.tensor(list(per_task(tasks, given, "ideals").values()))
