"""Conflict-averse gradient descent."""

from __future__ import annotations

from typing import Literal, Unpack

import torch
from torch import Tensor

from mtlweight.gradient_strategy import GramStrategy
from mtlweight.options import GramOptions, NonNegative, Tasks
from mtlweight.solvers import conflict_averse_weights

Division = Literal["none", "square", "linear"]


class CAGrad(GramStrategy):
    r"""Conflict-averse gradient descent: near the mean gradient, the best step for the worst task.

    $$d = \arg\max_{\lVert d - g_0 \rVert \le c \lVert g_0 \rVert}\ \min_i\ \langle g_i, d \rangle
    = g_0 + c\, \lVert g_0 \rVert\, \frac{g_w}{\lVert g_w \rVert}, \qquad g_0 = \frac1T \sum_i g_i$$

    for the $g_w = \sum_i w_i g_i$, w on the simplex, with the least
    $\langle g_w, g_0 \rangle + c \lVert g_0 \rVert \lVert g_w \rVert$; and then
    $d / (1 + c^2)$. The weights reported are those of the losses in that,
    $\frac1T + c \lVert g_0 \rVert w_i / \lVert g_w \rVert$ divided alike. Solved to 1e-9.

    Where the least is zero, at the origin, $g_w$ has no direction and many d are best: if it is
    shorter than $10^{-4} \sum_i w_i \lVert g_i \rVert$, ours is the nearest to $g_0$, that of
    `DualProj`. A task without gradient does not count as the worst: its $w_i$ is zero (ours).

    Use it when the mean loss is what you want to lower, and the worst-off task should gain too: c
    goes from one to the other. Not when tasks differ in scale, which it does not balance, or when
    no task may be hurt: that takes $c \ge 1$.

    Args:
        tasks: The names of the tasks, or their number.
        c: The radius of the ball, relative to the length of the mean gradient. Zero is the mean.
        division: What d is divided by: `"square"` $1 + c^2$, `"linear"` $1 + c$, or `"none"`.
        **options: See `GramOptions`.

    Source: Liu et al., *Conflict-averse gradient descent for multi-task learning*, NeurIPS 2021,
    arXiv 2110.14048, algorithm 1. c and the division as in the authors' scripts, which also
    multiply d by T.
    """

    def __init__(
        self,
        tasks: Tasks,
        *,
        c: NonNegative = 0.4,
        division: Division = "square",
        **options: Unpack[GramOptions],
    ) -> None:
        super().__init__(tasks, **options)
        self.c = c
        self.division = division

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        if not gram.any():  # nothing is shared, and what is not gets the plain gradients
            return torch.full_like(losses, 1 / len(losses))
        divisor = {"none": 1.0, "square": 1 + self.c**2, "linear": 1 + self.c}[self.division]
        return conflict_averse_weights(gram, self.c) / divisor
