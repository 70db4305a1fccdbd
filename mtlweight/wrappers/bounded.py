"""Weights within bounds."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlweight.inputs import Metrics
from mtlweight.options import OptionError, Share
from mtlweight.strategy import Strategy
from mtlweight.wrappers.base import Wrapper


class Bounded(Wrapper):
    r"""Keeps every weight above a floor and below a cap, and their sum as it is.

    $$\tilde w_i = \min(\max(\lambda w_i, f S), u S), \qquad S = \sum_j w_j$$

    with the one $\lambda$ for which $\sum_i \tilde w_i = S$: the weights between the bounds keep
    their ratios. As in `Bounded(FocalAchievement(tasks, references), floor=0.05)`. Clipping and
    then dividing by the sum would break the bounds again; $\lambda$ is found exactly, at once. The
    bounds hold of the epoch's weights too, which become quotas. A negative weight counts as zero,
    and adds nothing to S. Of the n tasks of a step without the others, each gets at most
    $\max(u, 1/n)\, S$ (ours).

    Use it when a strategy starves tasks, or gives all to one, and above all when weights become
    shares of the data, where a task without samples is not measured any more. Not when weights of
    zero are the point, as in `MGDA`, whose step then lowers all losses no longer.

    Args:
        inner: The strategy to keep within bounds.
        floor: $f$, the smallest share of the sum, at most 1/T.
        cap: $u$, the largest, at least 1/T.

    Raises:
        OptionError: A bound is out of range for T tasks.

    Source: ours; known as water-filling.
    """

    def __init__(self, inner: Strategy, *, floor: Share = 0.0, cap: Share = 1.0) -> None:
        super().__init__(inner)
        equal = 1 / self.num_tasks
        slack = 1 + 1e-6  # for thirds with a few digits
        if floor > equal * slack:
            raise OptionError(
                f"`floor` is {floor!r}, and {self.num_tasks} tasks can't have that each: it must "
                f"be at most 1/T, {equal:.6g}."
            )
        if cap * slack < equal:
            raise OptionError(
                f"`cap` is {cap!r}, and {self.num_tasks} tasks would have less than the sum: it "
                f"must be at least 1/T, {equal:.6g}."
            )
        self.floor = min(floor, equal)
        self.cap = max(cap, equal)
        self.weights = self.change(self.weights)

    def change(self, weights: Tensor) -> Tensor:
        """Returns the weights `[n]` within the bounds."""
        return bounded(weights, self.floor, max(self.cap, 1 / len(weights)))

    def close_epoch(self, metrics: Metrics | None) -> None:
        """Closes the inner epoch; the weights of the next are within the bounds."""
        super().close_epoch(metrics)
        self.weights = self.change(self.weights)  # means over different steps need not be


def bounded(weights: Tensor, floor: float, cap: float) -> Tensor:
    r"""Returns weights `[n]` scaled by one number and clipped, so that they sum to what they did.

    $g(\lambda) = \sum_i \min(\max(\lambda w_i, f S), u S)$ grows piece by piece in straight lines,
    and bends where a weight leaves the floor or meets the cap. From the last bend at which it is
    not above S, the piece that crosses S is known.
    """
    weights = weights.clamp_min(0)
    total = weights.sum()
    low, high = floor * total, cap * total
    # What is next to nothing goes to the floor, and can be lifted further if the cap asks for it.
    positive = weights.clamp_min(torch.finfo(weights.dtype).tiny).maximum(1e-12 * total)
    bends = torch.cat([low / positive, high / positive])
    sums = (bends[:, None] * positive).clamp(low, high).sum(1)
    start = torch.where(sums <= total, bends, 0.0).max()
    at_floor = start < low / positive
    at_cap = start >= high / positive
    free = ~(at_floor | at_cap)
    fixed = (at_floor * low + at_cap * high).sum()
    scale = (total - fixed) / (free * positive).sum().clamp_min(torch.finfo(weights.dtype).tiny)
    filled = torch.where(at_floor, low, torch.where(at_cap, high, scale * positive))
    return torch.where(total > 0, filled.clamp(low, high), weights)
