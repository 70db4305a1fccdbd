"""Projecting conflicting gradients."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from mtlweight.options import GradientOptions, Seed, Tasks
from mtlweight.strategy import GramStrategy


class PCGrad(GramStrategy):
    r"""Gradient surgery: takes out of each task gradient what conflicts with another.

    For each task i, from $v = g_i$, for the other tasks j in random order:

    $$v \leftarrow v - \frac{v \cdot g_j}{\lVert g_j \rVert^2}\, g_j
    \quad \text{if } v \cdot g_j < 0$$

    and the step is the sum of the T results. Computed in the coefficients of
    $v = \sum_j c_j g_j$, for which the Gram matrix is enough.

    Args:
        tasks: The names of the tasks, or their number.
        shuffle: Whether the order is random, as in the paper, or that of the tasks.
        seed: Seeds the orders.
        **options: See `GradientOptions`.

    Source: Yu et al., *Gradient surgery for multi-task learning*, NeurIPS 2020, algorithm 1.
    """

    def __init__(
        self,
        tasks: Tasks,
        *,
        shuffle: bool = True,
        seed: Seed = 0,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(tasks, **options)
        self.shuffle = shuffle
        self.seed = seed

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        generator = self.generator()
        coefficients = torch.eye(len(gram), dtype=gram.dtype)
        for i, c in enumerate(coefficients):
            order = torch.randperm(len(gram), generator=generator) if self.shuffle else None
            for j in range(len(gram)) if order is None else order.tolist():
                overlap = gram[j] @ c
                if j != i and overlap < 0:
                    c[j] -= overlap / gram[j, j]
        return coefficients.sum(0)
