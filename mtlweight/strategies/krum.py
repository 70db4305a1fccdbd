"""Picking the gradients that agree."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from mtlweight.gradient_strategy import GramStrategy
from mtlweight.options import Count, GramOptions, Natural, OptionError, Tasks


class Krum(GramStrategy):
    r"""Krum and Multi-Krum: the gradients with the closest neighbours, whatever the others are.

    $$\text{score}_i = \sum_{j \in N_i} \lVert g_i - g_j \rVert^2, \qquad
    w_i = 1/m \ \text{for the m lowest scores, else}\ 0$$

    with $N_i$ the $n - f - 2$ gradients closest to $g_i$ of the n present, of which f may be
    anything. Tasks with the same score share its place (ours; the paper takes the first): the two
    of three that are closest to each other get one half each. In a step with fewer than f + 3
    tasks, f is n - 3; with fewer than three there is nothing to compare, and it is the mean.

    Use it when tasks are many views of one goal, such as clients or noisy labellers, of which some
    may send nonsense. Not when tasks have goals of their own: a step trains m of them.

    Args:
        tasks: The names of the tasks, or their number.
        byzantine: f; at most T - 3. By default the largest that the paper's proof covers,
            $2f + 2 < n$, of the tasks present.
        select: m, the number of gradients that the step is the mean of.
        **options: See `GramOptions`.

    Raises:
        OptionError: There are fewer tasks than `byzantine` + 3, or than `select`.

    Source: Blanchard, El Mhamdi, Guerraoui & Stainer, *Machine learning with adversaries: Byzantine
    tolerant gradient descent*, NeurIPS 2017.
    """

    def __init__(
        self,
        tasks: Tasks,
        *,
        byzantine: Natural | None = None,
        select: Count = 1,
        **options: Unpack[GramOptions],
    ) -> None:
        super().__init__(tasks, **options)
        if byzantine is not None and byzantine + 3 > self.num_tasks:
            raise OptionError(
                f"`byzantine` = {byzantine} needs at least {byzantine + 3} tasks, and there are "
                f"{self.num_tasks}: leave it out for the most that they allow."
            )
        if select > self.num_tasks:
            raise OptionError(
                f"`select` = {select} is more than the {self.num_tasks} tasks: give at most that."
            )
        self.byzantine = byzantine
        self.select = select

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        n = len(gram)
        if n < 3:
            return torch.full_like(losses, 1 / n)
        f = (n - 3) // 2 if self.byzantine is None else min(self.byzantine, n - 3)
        m = min(self.select, n)
        squares = gram.diagonal()
        distances = (squares[:, None] + squares - 2 * gram).clamp_min(0).fill_diagonal_(torch.inf)
        scores = distances.sort().values[:, : n - f - 2].sum(1)
        place = scores.argsort()[m - 1]
        last = scores[place]
        # What differs in the rounding of single precision is equal: the order must not decide.
        noise = (
            1e-12 * last + self.rounding * squares[place].sqrt() * (squares[place] + last).sqrt()
        )
        sure = (scores < last - noise).to(gram)
        tied = ((scores - last).abs() <= noise).to(gram)
        return (sure + tied * (m - sure.sum()) / tied.sum()) / m
