"""Balancing by what is left to improve."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from mtlweight.inputs import Metrics
from mtlweight.loss_strategy import LossStrategy
from mtlweight.options import Natural, Options, Tasks
from mtlweight.running import RunningMean
from mtlweight.strategies.geometric import safe_log
from mtlweight.strategies.loss_trends import relative


class IGBv1(LossStrategy):
    r"""Improvable gap balancing: favours the tasks whose loss fell least, among logarithms.

    $$\mathcal{L} = \sum_i v_i \log L_i, \qquad v = T \operatorname{softmax}(L / B), \qquad
    w_i = v_i / L_i$$

    with $B_i$ the mean loss of task i in an early epoch, and $v$ held constant in the derivative;
    $v = 1$ until $B$ is known. The weights reported are those of the losses, $w$, whose sum is not
    fixed. Ours: $L / B$ within [0, 10]; a task absent from that epoch gets its $B$ from the first
    later one that has it; $v$ sums to the number of tasks present. A loss below $10^{-8}$ of the
    largest has no say in the step.

    Use it when the losses differ in scale, and those that have come down should make room for those
    that have not. Not when an epoch means nothing, as with `end_epoch` never called: it is
    `ScaleInvariant` then.

    Args:
        tasks: The names of the tasks, or their number.
        base_epoch: The epoch whose mean losses are $B$, from 0.
        **options: See `Options`.

    Attributes:
        bases: $B$, `[T]`; zero until it is known.

    Raises:
        ValueError: A loss is negative.

    Source: Dai, Fei & Lu, *Improvable gap balancing for multi-task learning*, UAI 2023, IGBv1, with
    the base epoch of the authors' code.
    """

    bases: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        base_epoch: Natural = 1,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(tasks, **options)
        self.base_epoch = base_epoch
        self.epoch_losses = RunningMean(self.num_tasks)
        self.register_buffer("bases", torch.zeros(self.num_tasks))

    @property
    def nonnegative_losses(self) -> bool:
        """A negative loss has no logarithm."""
        return True

    def scalarize(self, losses: Tensor) -> Tensor:
        now = losses.detach()
        self.epoch_losses.add(self.present, now)
        v = len(now) * relative(now, self.bases[self.present].to(now)).softmax(0)
        return (v * safe_log(losses)).sum()

    def close_epoch(self, metrics: Metrics | None) -> None:
        """Keeps the mean losses of the base epoch."""
        if self.epoch >= self.base_epoch:
            means = self.epoch_losses.mean(default=self.bases)
            self.bases = torch.where(self.bases > 0, self.bases, means)
        self.epoch_losses.reset()
