"""Weights learned along with the network: uncertainty weighting and its relative."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from mtlweight.options import Finite, Options, Positive, Tasks
from mtlweight.running import Adam
from mtlweight.strategy import LossStrategy


class UW(LossStrategy):
    r"""Uncertainty weighting: learns one log-variance per task, along with the network.

    $$\mathcal{L} = \tfrac12 \sum_i \big( e^{-s_i} L_i + s_i \big), \qquad w_i = \tfrac12 e^{-s_i}$$

    At the optimum $e^{s_i} = L_i$. The strategy learns $s$ by itself, with an Adam of its own:
    nothing to hand to the optimizer, and no weight decay that pulls the weights to one half. $s$ is
    used within [-10, 10] (ours), so that a loss at or below zero does not run away with it.

    Args:
        tasks: The names of the tasks, or their number.
        learning_rate: That of $s$.
        initial: $s$ at the start.
        **options: See `Options`.

    Source: Kendall, Gal & Cipolla, *Multi-task learning using uncertainty to weigh losses*, CVPR
    2018, in the form for regression, for all tasks.
    """

    log_variances: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        learning_rate: Positive = 0.025,
        initial: Finite = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(tasks, **options)
        self.register_buffer("log_variances", torch.full((self.num_tasks,), float(initial)))
        self.adam = Adam(self.num_tasks, learning_rate)
        self.weights = (-self.log_variances.clamp(-10, 10)).exp() / 2

    def scalarize(self, losses: Tensor) -> Tensor:
        s = self.log_variances[self.present].clamp(-10, 10).to(losses)
        slope = (1 - (-s).exp() * losses.detach()) / 2
        self.log_variances = self.adam.step(self.log_variances, self.present, slope).clamp(-10, 10)
        return ((-s).exp() * losses + s).sum() / 2


class IMTLL(LossStrategy):
    r"""The loss half of impartial multi-task learning: scales every loss to one.

    $$\mathcal{L} = \sum_i \big( e^{s_i} L_i - s_i \big), \qquad w_i = e^{s_i}$$

    At the optimum $e^{s_i} L_i = 1$, where the gradient is that of $\sum_i \log L_i$. Starts as the
    sum of the losses. Learns $s$ by itself, and uses it within [-10, 10], as `UW` does.

    Args:
        tasks: The names of the tasks, or their number.
        learning_rate: That of $s$.
        initial: $s$ at the start.
        **options: See `Options`.

    Source: Liu et al., *Towards impartial multi-task learning*, ICLR 2021, IMTL-L with base e.
    """

    log_scales: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        learning_rate: Positive = 0.025,
        initial: Finite = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(tasks, **options)
        self.register_buffer("log_scales", torch.full((self.num_tasks,), float(initial)))
        self.adam = Adam(self.num_tasks, learning_rate)
        self.weights = self.log_scales.clamp(-10, 10).exp()

    def scalarize(self, losses: Tensor) -> Tensor:
        s = self.log_scales[self.present].clamp(-10, 10).to(losses)
        slope = s.exp() * losses.detach() - 1
        self.log_scales = self.adam.step(self.log_scales, self.present, slope).clamp(-10, 10)
        return (s.exp() * losses - s).sum()
