"""Dynamic weight average."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from mtlweight.inputs import Metrics
from mtlweight.loss_strategy import LossWeighting, among
from mtlweight.options import Options, Positive, Tasks
from mtlweight.running import RunningMean


class DWA(LossWeighting):
    r"""Dynamic weight average: favours the tasks whose loss fell least from epoch to epoch.

    $$r_i = \bar L_i^{(e-1)} / \bar L_i^{(e-2)}, \qquad w = \operatorname{softmax}(r / \tau)$$

    with $\bar L_i^{(e)}$ the mean unweighted loss of task i in epoch e; equal weights in the first
    two epochs. The paper's weights sum to T (`rescale="tasks"`); ours to one. Ratios are kept
    within [0, 10], and a task that is absent from an epoch keeps its last one (ours).

    Use it when tasks learn at different speeds, and those that have come to a halt should get more.
    Not when the losses differ in scale: the weights do not see it. Nor when there are few epochs:
    two pass before it begins. Ratios are mostly close to one, and the weights then close to equal.

    Args:
        tasks: The names of the tasks, or their number.
        temperature: $\tau$; the larger, the more equal the weights.
        **options: See `Options`.

    Source: Liu, Johns & Davison, *End-to-end multi-task learning with attention*, CVPR 2019.
    """

    shares: Tensor
    ratios: Tensor
    last_means: Tensor

    def __init__(
        self, tasks: Tasks, *, temperature: Positive = 2.0, **options: Unpack[Options]
    ) -> None:
        super().__init__(tasks, **options)
        self.temperature = temperature
        self.epoch_losses = RunningMean(self.num_tasks)
        self.register_buffer("shares", self.uniform())
        self.register_buffer("ratios", torch.ones(self.num_tasks))
        self.register_buffer("last_means", torch.full((self.num_tasks,), torch.nan))

    def weights_of(self, losses: Tensor) -> Tensor:
        self.epoch_losses.add(self.present, losses)
        return among(self.shares, self.present)

    def close_epoch(self, metrics: Metrics | None) -> None:
        """Weighs the tasks by how much their losses fell since the epoch before."""
        means = self.epoch_losses.mean(default=self.last_means)
        seen = (self.epoch_losses.counts > 0) & ~self.last_means.isnan()
        ratios = torch.where(self.last_means != 0, means / self.last_means, 1.0).clamp(0, 10)
        self.ratios = torch.where(seen, ratios, self.ratios)
        self.shares = (self.ratios / self.temperature).softmax(0)
        self.last_means = means
        self.epoch_losses.reset()
        self.weights = self.shares.clone()
