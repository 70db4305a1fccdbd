"""Random weights."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from mtlweight.loss_strategy import LossWeighting
from mtlweight.options import Natural, Options, Tasks
from mtlweight.running import sent


class RLW(LossWeighting):
    r"""Random loss weighting: weights drawn anew every step, equal on average.

    $$w = \operatorname{softmax}(x), \qquad x \sim \mathcal{N}(0, I)$$

    The draw is a function of `seed` and the step, so that all ranks draw the same and a resumed run
    goes on as if it had not stopped.

    Use it when a study needs the baseline that any balancing has to beat. Not when the losses
    differ in scale, which random weights do not balance, or when weights are spent on data: their
    mean over an epoch is nearly equal.

    Args:
        tasks: The names of the tasks, or their number.
        seed: Seeds the draws.
        **options: See `Options`.

    Source: Lin, Ye, Zhang & Tsang, *Reasonable effectiveness of random weighting: a litmus test for
    multi-task learning*, TMLR 2022, with its default distribution.
    """

    def __init__(self, tasks: Tasks, *, seed: Natural = 0, **options: Unpack[Options]) -> None:
        super().__init__(tasks, **options)
        self.seed = seed

    def weights_of(self, losses: Tensor) -> Tensor:
        x = torch.randn(self.num_tasks, generator=self.generator())
        return sent(x[self.index].softmax(0), losses)
