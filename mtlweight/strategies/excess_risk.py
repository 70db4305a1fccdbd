"""Weights from estimates of how much each loss could still fall."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor

from mtlweight.distributed import sum_over_ranks, world_size
from mtlweight.gradient_strategy import GradientStrategy
from mtlweight.options import Count, GradientOptions, Positive, Tasks
from mtlweight.pieces import in_pieces, sizes_of
from mtlweight.running import filled, updated, widened
from mtlweight.strategies.worst_case import shifted
from mtlweight.task_gradients import Parts


class ExcessMTL(GradientStrategy):
    r"""Excess risks: favours the tasks that are farthest from the best they could reach.

    $$S_i \leftarrow S_i + g_i^2, \qquad e_i = \sum_p \frac{g_{ip}^2}{\sqrt{S_{ip}}}, \qquad
    w_i \leftarrow w_i \exp(\eta\, e_i / e_i^{(0)}) \,/\, \text{their sum}$$

    from equal weights, which the first steps leave as they are: $e_i^{(0)}$ is the mean of $e_i$
    over them. A small excess risk, unlike a small loss, tells that a task is done, whatever noise
    is in its labels. The weights multiply whole losses, heads included.

    The paper takes $e_i^{(0)}$ from three epochs (`warmup=3 * len(loader)`), its authors' code from
    the first step, which is ours by default. Ours: the ratio $e_i / e_i^{(0)}$ counts as ten at
    most, so that one spike doesn't decide for good; the weights are kept as logarithms; steps in
    which a task has no gradient don't count towards its first; no epsilon, since $\sqrt{S}$ is kept
    in place of S. Given features, which are of other samples in each step, S is that of the step
    alone. Keeps T gradients in memory, also in `state_dict()`.

    Use it when some tasks have noisy labels, whose losses stay high and would draw all weight in a
    strategy that goes by losses. Not when memory is short. Not when training is long and $\eta$
    large: the weights only ever add up, and one task may end with all of them.

    Args:
        tasks: The names of the tasks, or their number.
        step_size: $\eta$.
        warmup: The number of first steps.
        **options: See `GradientOptions`.

    Attributes:
        roots: $\sqrt{S}$, `[T, P]`.
        log_shares: $\log w$, `[T]`.
        base_sums: The sum of $e_i$ over the first steps, `[T]`.
        base_counts: Their number so far, `[T]`.

    Raises:
        ValueError: What the tasks share has become less; what is added to it begins at zero.

    Source: He, Zhou, Zhang & Zhao, *Robust multi-task learning with excess risks*, ICML 2024, arXiv
    2402.02009, equations 6, 7 and 9.
    """

    growing: ClassVar[tuple[str, ...]] = ("roots",)
    paper_weights_heads: ClassVar[bool] = True
    cap = 10.0
    roots: Tensor
    log_shares: Tensor
    base_sums: Tensor
    base_counts: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        step_size: Positive = 0.01,
        warmup: Count = 1,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(tasks, **options)
        self.step_size = step_size
        self.warmup = warmup
        self.register_buffer("roots", torch.zeros(self.num_tasks, 0))
        self.register_buffer("log_shares", self.uniform().log())
        self.register_buffer("base_sums", torch.zeros(self.num_tasks))
        self.register_buffer("base_counts", torch.zeros(self.num_tasks))

    def combine(self, gradients: Tensor, losses: Tensor) -> tuple[Tensor, Tensor | Parts]:
        risks = self._risks(gradients).to(self.base_sums).clamp_max(1e30)
        sums, counts = self.base_sums[self.present], self.base_counts[self.present]
        first = counts < self.warmup
        ratios = torch.where(first, 0.0, risks * counts / sums.clamp_min(1e-38)).clamp_max(self.cap)
        self.base_sums = updated(self.base_sums, self.present, sums + first * risks)
        self.base_counts = updated(self.base_counts, self.present, counts + (first & (risks > 0)))
        log_shares = shifted(self.log_shares[self.present], self.step_size * ratios)
        self.log_shares = updated(self.log_shares, self.present, log_shares)
        weights = log_shares.softmax(0).to(losses)
        return weights, Parts(weights, gradients)

    def _risks(self, gradients: Tensor) -> Tensor:
        """Returns e, `[n]`."""
        if self.on_features:
            return sum_over_ranks(sizes_of(gradients)) / world_size()
        past, risks = widened(self.roots, gradients), gradients.new_zeros(self.num_tasks)
        everywhere = filled(self.num_tasks, self.present, gradients)
        roots = self.workspace.borrow(self.num_tasks, past.shape[1], gradients)
        for g, old, root in in_pieces(everywhere, past, roots):
            torch.hypot(old, g, out=root)
            risks += (g / root).mul_(g).nansum(1)  # an entry that never was is zero over zero
        self.roots = roots
        return risks[self.present]
