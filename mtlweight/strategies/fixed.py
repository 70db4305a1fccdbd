"""Constant weights: the baselines."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from mtlweight.inputs import Metrics
from mtlweight.loss_strategy import LossWeighting
from mtlweight.options import Options, Tasks
from mtlweight.per_task import shares_of


class Equal(LossWeighting):
    r"""Equal weights: the mean of the losses. The baseline.

    $$\mathcal{L} = \frac1T \sum_i L_i$$

    Also known as linear scalarisation, or EW. Peers often take the sum, which is `rescale="tasks"`.

    Use it when nothing speaks for anything else: first of all, and beside whatever else you try.
    Not when the losses differ in unit or size: the task with the longest gradient then decides.

    Source: the baseline of every paper here. Kurin et al., *In defense of the unitary scalarization
    for deep multi-task learning*, NeurIPS 2022, found it hard to beat.
    """

    def weights_of(self, losses: Tensor) -> Tensor:
        return torch.full_like(losses, 1 / len(losses))


class Fixed(LossWeighting):
    r"""Weights that the user sets, say by a grid search: the arm to beat.

    $$\mathcal{L} = \sum_i w_i L_i$$

    Use it when a search has found the weights, or the losses have a unit that says what they are
    worth. Not when there are many tasks, for which a search is too dear, or when the scales of the
    losses drift in training, which constants do not follow.

    Args:
        tasks: The names of the tasks, or their number.
        weights: $w$, non-negative and not all zero: a mapping from task name, or `[T]`. Taken as
            they are; tasks absent from a batch do not change those of the others.
        **options: See `Options`.

    Raises:
        OptionError: A weight is missing, negative or not finite, or all are zero.

    Source: none is needed. Xin et al., *Do current multi-task optimization methods in deep learning
    even help?*, NeurIPS 2022, is why it is the arm to beat.
    """

    constants: Tensor

    def __init__(
        self,
        tasks: Tasks,
        weights: Metrics,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(tasks, **options)
        constants = shares_of(self.tasks, weights, "weights")
        self.register_buffer("constants", torch.tensor(constants))
        self.weights = self.constants.clone()

    def weights_of(self, losses: Tensor) -> Tensor:
        return self.constants[self.present]
