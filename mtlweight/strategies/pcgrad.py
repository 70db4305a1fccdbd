"""Projecting conflicting gradients."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from mtlweight.gradient_strategy import GramStrategy
from mtlweight.options import GramOptions, Natural, Tasks


class PCGrad(GramStrategy):
    r"""Gradient surgery: takes out of each task gradient what conflicts with another.

    For each task i, from $v = g_i$, for the other tasks j in random order:

    $$v \leftarrow v - \frac{v \cdot g_j}{\lVert g_j \rVert^2}\, g_j
    \quad \text{if } v \cdot g_j < 0$$

    and the step is the sum of the T results. Computed in the coefficients of
    $v = \sum_j c_j g_j$, for which the Gram matrix is enough.

    Use it when tasks pull against each other and you want a known baseline without numbers to tune:
    without conflict it is the sum. Not when tasks differ in scale, which it does not balance, or
    when no task may be hurt: with more than two tasks, a later projection can undo an earlier one.

    Args:
        tasks: The names of the tasks, or their number.
        shuffle: Whether the order is random, as in the paper, or that of the tasks.
        seed: Seeds the orders.
        **options: See `GramOptions`.

    Source: Yu et al., *Gradient surgery for multi-task learning*, NeurIPS 2020, algorithm 1.
    """

    def __init__(
        self,
        tasks: Tasks,
        *,
        shuffle: bool = True,
        seed: Natural = 0,
        **options: Unpack[GramOptions],
    ) -> None:
        super().__init__(tasks, **options)
        self.shuffle = shuffle
        self.seed = seed

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        g: list[list[float]] = gram.tolist()
        coefficients = []
        for i, order in enumerate(orders(len(g), self.generator() if self.shuffle else None)):
            c, products = unit(i, len(g)), g[i]  # those of v with each gradient
            for j in order:
                if j != i and products[j] < 0:
                    step = -products[j] / g[j][j]
                    c[j] += step
                    products = [a + step * b for a, b in zip(products, g[j], strict=True)]
            coefficients.append(c)
        return gram.new_tensor(coefficients).sum(0)


def orders(n: int, generator: torch.Generator | None) -> list[list[int]]:
    """Returns for each of n tasks the order in which it visits all, itself too.

    A random one for each, or that of the tasks if there is no generator.
    """
    if generator is None:
        return [list(range(n))] * n
    return [torch.randperm(n, generator=generator).tolist() for _ in range(n)]


def unit(i: int, n: int) -> list[float]:
    """Returns the coefficients of the i-th of n gradients."""
    return [float(j == i) for j in range(n)]
