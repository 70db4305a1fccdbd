"""Projections on the cone of the steps that hurt no task."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from mtlweight.gradient_strategy import GramStrategy
from mtlweight.inputs import Metrics
from mtlweight.options import GramOptions, Tasks
from mtlweight.per_task import shares_of
from mtlweight.solvers import dual_cone_weights


class Preferring(GramStrategy):
    """A strategy that takes a preference p into what it solves: `[T]`, or equal shares."""

    def __init__(
        self, tasks: Tasks, *, preference: Metrics | None = None, **options: Unpack[GramOptions]
    ) -> None:
        super().__init__(tasks, **options)
        self.preference: Tensor | None = None
        if preference is not None:
            given = shares_of(self.tasks, preference, "preference")
            self.preference = torch.tensor(given, dtype=torch.float64)

    def preferred(self, count: int) -> Tensor:
        """Returns the preference for the tasks present, `[n]`."""
        if self.preference is None:
            return torch.full((count,), 1 / count, dtype=torch.float64)
        return self.preference[self.index]


class UPGrad(Preferring):
    r"""Unconflicting projection of gradients: each on the cone of what hurts no task, then the sum.

    $$d = \sum_i \pi(p_i g_i), \qquad
    \pi(g) = \arg\min_{J d' \ge 0} \lVert d' - g \rVert$$

    with J the rows $g_i$. $\pi(p_i g_i) = J^\top v_i$ for the shortest $J^\top v$ with
    $v \ge p_i e_i$, and $w = \sum_i v_i$. Without conflict it is the mean; with two tasks it is
    half of `PCGrad`. Solved exactly: $\langle g_i, d \rangle \ge 0$ for all i, but for 1e-10 of
    $\lVert g_i \rVert \sum_j w_j \lVert g_j \rVert$, at any scale. A task without gradient gets
    $p_i$.

    Use it when no task may be hurt and each is to keep its own influence, in proportion to its
    gradient. Not when there are many tasks and steps are short: T quadratic programs a step cost a
    tenth of a second for a hundred tasks.

    Args:
        tasks: The names of the tasks, or their number.
        preference: p, non-negative and not all zero: a mapping from task name, or `[T]`, taken as
            it is. By default $1/n$ for each of the n tasks present.
        **options: See `GramOptions`.

    Raises:
        OptionError: A preference is missing, negative or not finite, or all are zero.

    Source: Quinton & Rey, *Jacobian descent for multi-objective optimization*, arXiv 2406.16232,
    equation 5.
    """

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        return dual_cone_weights(gram, torch.diag(self.preferred(len(gram)))).sum(0)


class DualProj(Preferring):
    r"""Projection of the mean gradient on the cone of the steps that hurt no task.

    $$d = \arg\min_{J d' \ge 0} \Big\lVert d' - \sum_i p_i g_i \Big\rVert$$

    with J the rows $g_i$: $d = J^\top w$ for the shortest $J^\top w$ with $w \ge p$. Without
    conflict with the mean it is the mean. Solved exactly: $\langle g_i, d \rangle \ge 0$ for all i,
    but for 1e-10 of $\lVert g_i \rVert \sum_j w_j \lVert g_j \rVert$, at any scale. A task without
    gradient gets $p_i$.

    Use it when the mean loss is what you want to lower, and no task may be hurt on the way. Not
    when short gradients are to have a say: the mean goes by the long ones, and a task may just be
    kept from getting worse.

    Args:
        tasks: The names of the tasks, or their number.
        preference: p, non-negative and not all zero: a mapping from task name, or `[T]`, taken as
            it is. By default $1/n$ for each of the n tasks present.
        **options: See `GramOptions`.

    Raises:
        OptionError: A preference is missing, negative or not finite, or all are zero.

    Source: Lopez-Paz & Ranzato, *Gradient episodic memory for continual learning*, NeurIPS 2017,
    arXiv 1706.08840, equation 11.
    """

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        return dual_cone_weights(gram, self.preferred(len(gram)))
