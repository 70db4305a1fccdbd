"""Impartial multi-task learning: the same progress for every task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from mtlweight.gradient_strategy import GramStrategy
from mtlweight.inputs import Step
from mtlweight.options import Finite, GramOptions, Positive, Tasks
from mtlweight.running import Adam
from mtlweight.strategies.config import Array, equal_cosines
from mtlweight.task_gradients import Shared


class IMTLG(GramStrategy):
    r"""The gradient half of impartial multi-task learning: equal projections on all gradients.

    $$d = \sum_i \alpha_i g_i, \qquad d \cdot u_i = d \cdot u_j \ \text{for all}\ i, j, \qquad
    \alpha = v / \sum_i v_i, \qquad v_i = (C^+ \mathbf{1})_i / \lVert g_i \rVert$$

    with $u_i = g_i / \lVert g_i \rVert$ and $C_{ij} = u_i \cdot u_j$. Where the paper's solution
    exists, v is $G^{-1} n$, with n the lengths. Where gradients are linearly dependent, projections
    are equal by least squares, and eigenvalues of C below $10^{-6}$ of the largest count as zero
    ($10^{-14}$ in double precision; ours), as in `ConFIG`. Some $v_i$ may be negative; where their
    sum is small or below zero, the paper's step is very long or climbs every loss. Ours keeps to
    the side that lowers them, and is never longer than the longest gradient, for which the weights
    then sum to less than one:

    $$\alpha = v / \max \Big( \sum_i v_i,\ \lVert \sum_i v_i g_i \rVert \,/\,
    \max_i \lVert g_i \rVert \Big)$$

    Exact opposites cancel. A task without gradient has no say, and gets the mean weight of the
    others on top (ours), which only its head can feel.

    Use it when tasks differ in the scale of their gradients and each is to make the same progress:
    multiplying a loss does not turn the step. Not when one gradient is much shorter than the others
    because its task is done: the step is no longer than that lets it be. `ConFIG` has the same
    direction and does not shrink so.

    Args:
        tasks: The names of the tasks, or their number.
        **options: See `GramOptions`.

    Source: Liu et al., *Towards impartial multi-task learning*, ICLR 2021, IMTL-G. The paper takes
    the gradients of the features that the tasks share: `strategy(losses, shared=features)`.
    """

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        return torch.from_numpy(impartial(gram.numpy(), self.rounding))


class IMTL(GramStrategy):
    r"""Impartial multi-task learning, both halves: learned scales, then equal projections.

    $$\ell_i = e^{s_i} L_i - s_i, \qquad d = \sum_i \alpha_i \nabla \ell_i, \qquad
    w_i = \alpha_i e^{s_i}$$

    with $\alpha$ as in `IMTLG`, of the gradients of $\ell_i$. What only one task uses gets
    $\nabla \ell_i = e^{s_i} \nabla L_i$. Learns $s$ by itself along $e^{s_i} L_i - 1$, with an Adam
    of its own, and uses it within [-10, 10], as `IMTLL` does (ours). Starts as `IMTLG`.

    Use it when the heads, too, suffer from losses of different scales: `IMTLG` leaves heads alone,
    and its direction is that of `IMTL` on what is shared. Not when losses can be zero or below for
    long: $s$ grows until $e^{10}$ holds it.

    Args:
        tasks: The names of the tasks, or their number.
        learning_rate: That of $s$.
        initial: $s$ at the start.
        **options: See `GramOptions`.

    Attributes:
        log_scales: $s$, `[T]`.

    Source: Liu et al., *Towards impartial multi-task learning*, ICLR 2021, with base e.
    """

    log_scales: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        learning_rate: Positive = 0.025,
        initial: Finite = 0.0,
        **options: Unpack[GramOptions],
    ) -> None:
        super().__init__(tasks, **options)
        self.register_buffer("log_scales", torch.full((self.num_tasks,), float(initial)))
        self.adam = Adam(self.num_tasks, learning_rate)
        self.scales = self.log_scales.clamp(-10, 10).exp()  # those of the latest call, [n]
        self.weights = self.scales / self.num_tasks

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        s = self.log_scales[self.present].clamp(-10, 10)
        self.scales = s.cpu().double().exp()
        slope = (self.scales * losses - 1).to(s)
        self.log_scales = self.adam.step(self.log_scales, self.present, slope).clamp(-10, 10)
        scaled = self.scales[:, None] * gram * self.scales
        return self.scales * torch.from_numpy(impartial(scaled.numpy(), self.rounding))

    def spend_step(self, step: Step, shared: Shared | None) -> Callable[[Tensor, Tensor], Tensor]:
        """Returns how to spend given weights; heads get the scales learned so far."""
        self.scales = self.log_scales[step.index].clamp(-10, 10).cpu().double().exp()
        return super().spend_step(step, shared)

    def paper_heads(self, weights: Tensor, losses: Tensor) -> Tensor:
        """Returns the learned scales, `[n]`."""
        return self.scales


def impartial(gram: Array, rounding: float) -> Array:
    r"""Returns the weights $\alpha$ of equal projections, `[n]`; see `IMTLG`."""
    norms = np.sqrt(gram.diagonal())
    moves = norms > 0
    if not moves.any():
        return np.full_like(norms, 1 / len(norms))
    q, cosines = equal_cosines(gram, rounding)
    v = np.divide(q, norms, out=np.zeros_like(q), where=moves)
    weights: Array = v / max(v.sum(), np.sqrt(q @ cosines) / norms.max())
    weights[~moves] = max(weights[moves].mean(), 0.0)
    return weights
