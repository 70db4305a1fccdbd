"""The multiple-gradient descent algorithm."""

from __future__ import annotations

from torch import Tensor

from mtlweight.gradient_strategy import GramStrategy
from mtlweight.solvers import min_norm_point


class MGDA(GramStrategy):
    r"""Multiple-gradient descent: the shortest vector in the convex hull of the task gradients.

    $$w = \arg\min_{w \ge 0,\ \sum_i w_i = 1} \Big\lVert \sum_i w_i g_i \Big\rVert^2$$

    The step lowers every loss, or none can be lowered without raising another. A task whose
    gradient vanishes stops the training of what is shared: that is the method. Solved exactly.

    Use it when no step may raise a loss, and the training should end where no task can gain without
    another paying. Not when gradients differ in length: the shortest gets the largest weight, so
    that the task that is nearly done leads, and the steps become as short as its gradient.

    Args:
        tasks: The names of the tasks, or their number.
        **options: See `GramOptions`.

    Source: Désidéri, *Multiple-gradient descent algorithm*, C. R. Math. 2012; Sener & Koltun,
    *Multi-task learning as multi-objective optimization*, NeurIPS 2018.
    """

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        return min_norm_point(gram)
