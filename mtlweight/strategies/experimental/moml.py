"""Weights that lower the held-out losses of all tasks at once."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from mtlweight.look_ahead import Surroundings
from mtlweight.options import GradientOptions, Positive, Tasks
from mtlweight.running import Adam
from mtlweight.solvers import min_norm_point
from mtlweight.strategies.experimental.bilevel import Bilevel, Closure, products


class MOML(Bilevel):
    r"""Multi-objective meta learning (experimental): weights whose next step helps every task.

    $$w = \operatorname{softmax}(a), \qquad \theta' = \theta - \eta \sum_i w_i \nabla L_i, \qquad
    u_t = \nabla_a L_t^{val}(\theta') = -\eta\, \frac{\partial w}{\partial a}
    \big( \langle \nabla_{\theta'} L_t^{val}, \nabla L_i \rangle \big)_i$$

    $$a \leftarrow \mathrm{Adam}\Big(a,\ \sum_t \pi_t u_t\Big), \qquad
    \pi = \arg\min_{\pi \ge 0,\ \sum \pi = 1} \Big\lVert \sum_t \pi_t u_t / \lVert u_t \rVert
    \Big\rVert$$

    and the step is along $\sum_i w_i \nabla L_i$ with the new weights. As in the authors' code, the
    multi-objective problem sees the $u_t$ at equal length, and $a$ follows them at their own. Ours:
    the shortest vector is found exactly; a held-out loss that the weights do not move has no say;
    the weights of the tasks present sum to one.

    Use it when no task is more important than another, with few tasks, a held-out batch at hand,
    and time for two passes of each task. Not when it is the speed of the tasks that should be
    balanced: with tasks that do not disturb each other there is nothing for it to learn.

    Args:
        tasks: The names of the tasks, or their number.
        validation: Computes the losses of the next held-out batch; see `Bilevel`.
        learning_rate: $\eta$.
        meta_learning_rate: That of $a$.
        **options: See `GradientOptions`.

    Attributes:
        logits: $a$, `[T]`.

    Raises:
        ValueError: A held-out loss is not finite, or can't be used; see `Bilevel`.

    Source: Ye, Lin, Yue, Guo, Xiao & Zhang, *Multi-objective meta learning*, NeurIPS 2021, in its
    form for multi-task learning, with the constants of a later implementation by the authors.
    """

    logits: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        validation: Closure,
        learning_rate: Positive = 0.1,
        meta_learning_rate: Positive = 1e-3,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(tasks, validation=validation, learning_rate=learning_rate, **options)
        self.register_buffer("logits", torch.zeros(self.num_tasks))
        self.adam = Adam(self.num_tasks, meta_learning_rate)

    def combine(
        self, gradients: Tensor, losses: Tensor, around: Surroundings
    ) -> tuple[Tensor, Tensor]:
        eta = self.learning_rate
        w = self.logits[self.present].softmax(0)
        by = -eta * (w.to(gradients) @ gradients)
        with self.losses_at(around, by, self.validation, "validation") as there:
            self.refuse_infinite_losses(there, losses)
            upper = around.gradients(there.values, "validation")
        w = w.cpu().double()
        inner = -eta * torch.stack([products(gradients, row) for row in upper])
        u = w * (inner - (inner @ w)[:, None])
        slopes = self.descent(u).clamp(-10, 10).to(self.logits)
        self.logits = self.adam.step(self.logits, self.present, slopes)
        return self.logits[self.present].softmax(0).to(losses), gradients

    def descent(self, u: Tensor) -> Tensor:
        """Returns the way `[n]` down all m held-out losses, from their gradients `[m, n]` in a."""
        norms = torch.linalg.vector_norm(u, dim=1)
        # What is left of a gradient that cancels is rounding, and has no direction.
        moves = norms > 1e-12 * norms.max()
        if not moves.any():
            return torch.zeros_like(u[0])
        units = u[moves] / norms[moves, None]
        return min_norm_point(units @ units.T) @ u[moves]
