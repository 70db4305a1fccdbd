"""Learning weights that balance the lengths of the task gradients."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor

from mtlweight.gradient_strategy import GramStrategy
from mtlweight.loss_strategy import among
from mtlweight.options import GramOptions, NonNegative, Positive, Tasks
from mtlweight.running import updated


class GradNorm(GramStrategy):
    r"""Gradient normalisation: gradients as long as their tasks are behind in training.

    $$G_i = w_i n_i, \qquad r_i = \frac{L_i / L_i(0)}{\frac1T \sum_j L_j / L_j(0)}, \qquad
    w_i \leftarrow w_i - \eta\, \frac{n_i}{\bar n}
    \operatorname{sign}\!\big(G_i - \bar G\, r_i^\alpha\big)$$

    with $n_i$ the length of task i's gradient and bars for means over tasks: descent on
    $\sum_i |G_i - \bar G r_i^\alpha|$ with the right hand side held fixed. This step is taken with
    the weights of before, as in the paper; they are then scaled back to their sum, which is T in
    the paper (`rescale="tasks"`) and one here. Ours: $\eta$ counts in units of the mean length
    $\bar n$, so that it suits any scale of the losses; weights stay above .001 of the mean; lengths
    within $10^{-5}$ of their goal are left alone; $L_i(0)$ is the first loss of the task that is
    not zero.

    The paper takes $n_i$ with respect to the last layer of the shared backbone: give
    `shared=last_layer.parameters()`, which costs T short backward passes beside the usual one. By
    default it is taken with respect to all that is shared (ours). The weights multiply whole
    losses, heads included.

    Use it when tasks learn at different speeds and their initial losses mean something. Not when
    lengths differ by more than about $1/\eta$: weights move by steps of $\eta$ and can't settle on
    smaller ones; `AvgNorm` sets them at once. Nor when training resumes from a trained network,
    whose initial losses are already low.

    Args:
        tasks: The names of the tasks, or their number.
        alpha: $\alpha$, how much longer gradients of tasks behind shall be; 0 for equal lengths.
        learning_rate: $\eta$.
        **options: See `GramOptions`.

    Attributes:
        shares: The weights of the next step, `[T]`.
        initial_losses: $L(0)$, NaN until seen, `[T]`.

    Raises:
        ValueError: A loss is negative.

    Source: Chen, Badrinarayanan, Lee & Rabinovich, *GradNorm*, ICML 2018, algorithm 1. Which
    optimizer the authors gave the weights is not known to us; ours is plain descent.
    """

    paper_weights_heads: ClassVar[bool] = True
    shares: Tensor
    initial_losses: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        alpha: NonNegative = 1.5,
        learning_rate: Positive = 0.025,
        **options: Unpack[GramOptions],
    ) -> None:
        super().__init__(tasks, **options)
        self.alpha = alpha
        self.learning_rate = learning_rate
        self.register_buffer("shares", self.uniform())
        self.register_buffer("initial_losses", torch.full((self.num_tasks,), torch.nan))

    @property
    def nonnegative_losses(self) -> bool:
        """A ratio of losses of different signs has no power."""
        return True

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        shares = among(self.shares, self.present).cpu().double()
        w = shares / shares.mean()
        n = gram.diagonal().sqrt()
        lengths = w * n
        goals = lengths.mean() * self._rates(losses) ** self.alpha
        away = (lengths - goals).abs() > 1e-5 * goals
        slopes = (lengths - goals).sign() * n / n.mean() if n.any() else n
        moved = (w - self.learning_rate * torch.where(away, slopes, 0.0)).clamp_min(1e-3)
        here = self.shares[self.present]
        new = (moved / moved.sum()).to(here) * here.sum()
        self.shares = updated(self.shares, self.present, new)
        return shares

    def _rates(self, losses: Tensor) -> Tensor:
        """Returns how far each task is behind, relative to the others, `[n]`."""
        initial = self.initial_losses[self.present]
        first = losses.to(initial)
        initial = torch.where(initial.isnan() & (first > 0), first, initial)
        self.initial_losses = updated(self.initial_losses, self.present, initial)
        initial = initial.cpu().double()
        ratios = torch.where(initial > 0, losses / initial, 1.0)
        return ratios / ratios.mean() if ratios.any() else torch.ones_like(ratios)
