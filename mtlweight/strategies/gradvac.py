"""Bringing task gradients as close to each other as they usually are."""

from __future__ import annotations

import math
from operator import mul
from typing import Unpack

import torch
from torch import Tensor

from mtlweight.gradient_strategy import GramStrategy
from mtlweight.options import GramOptions, Natural, Share, Tasks
from mtlweight.running import updated
from mtlweight.strategies.pcgrad import orders, unit


class GradVac(GramStrategy):
    r"""Gradient vaccine: gives each pair of gradients at least the cosine that it usually has.

    For each task i, from $v = g_i$, for the other tasks j in random order, with
    $\phi = \cos(v, g_j)$ and the target $\hat\phi_{ij}$, zero at the start:

    $$v \leftarrow v + \frac{\lVert v \rVert}{\lVert g_j \rVert}
    \Big( \hat\phi_{ij} \sqrt{\frac{1-\phi^2}{1-\hat\phi_{ij}^2}} - \phi \Big)\, g_j
    \quad \text{if } \phi < \hat\phi_{ij}, \qquad
    \hat\phi_{ij} \leftarrow (1-\beta)\, \hat\phi_{ij} + \beta\, \phi$$

    after which $\cos(v, g_j) = \hat\phi_{ij}$, and the step is the sum of the T results. The first
    step is that of `PCGrad`. Targets follow every cosine, corrected or not, and are kept within
    [-.999, .999] (ours): at one the correction has no end. A gradient that corrections have
    cancelled is not turned further, nor is a target of it moved (ours). The paper also offers
    targets by layer; here they are of all that is shared.

    Use it when tasks are related, as languages of one translator are, and gradients that are merely
    far apart should be drawn together, where `PCGrad` acts on conflicts alone. Not when tasks
    differ in scale, which it does not balance.

    Args:
        tasks: The names of the tasks, or their number.
        beta: $\beta$, how fast targets follow. Peers take .5; the paper's is smaller, about .01.
        shuffle: Whether the order is random, as in the paper, or that of the tasks.
        seed: Seeds the orders.
        **options: See `GramOptions`.

    Attributes:
        targets: $\hat\phi$, `[T, T]`; a pair that is not in a step keeps its own.

    Source: Wang, Tsvetkov, Firat & Cao, *Gradient vaccine*, ICLR 2021, arXiv 2010.05874.
    """

    targets: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        beta: Share = 0.5,
        shuffle: bool = True,
        seed: Natural = 0,
        **options: Unpack[GramOptions],
    ) -> None:
        super().__init__(tasks, **options)
        self.beta = beta
        self.shuffle = shuffle
        self.seed = seed
        self.register_buffer("targets", torch.zeros(self.num_tasks, self.num_tasks))

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        g: list[list[float]] = gram.tolist()
        norms = gram.diagonal().sqrt().tolist()
        rows = self.targets[self.present]
        targets: list[list[float]] = rows[:, self.present].tolist()
        coefficients = []
        for i, order in enumerate(orders(len(g), self.generator() if self.shuffle else None)):
            c, products, length = unit(i, len(g)), g[i], norms[i]  # those of v
            for j in order:
                if j == i or norms[j] == 0 or length <= 1e-3 * norms[i]:
                    continue
                cosine = max(-1.0, min(1.0, products[j] / (length * norms[j])))
                target = targets[i][j]
                if cosine < target:
                    stretch = math.sqrt((1 - cosine**2) / (1 - target**2))
                    step = length / norms[j] * (target * stretch - cosine)
                    c[j] += step
                    products = [a + step * b for a, b in zip(products, g[j], strict=True)]
                    length = math.sqrt(max(0.0, sum(map(mul, c, products))))
                moved = target + self.beta * (cosine - target)
                targets[i][j] = max(-0.999, min(0.999, moved))
            coefficients.append(c)
        columns = self.targets.new_tensor(targets).T
        self.targets = updated(self.targets, self.present, updated(rows.T, self.present, columns).T)
        return gram.new_tensor(coefficients).sum(0)
