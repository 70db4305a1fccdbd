"""Weights from how each loss moves from step to step."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from mtlweight.loss_strategy import LossWeighting
from mtlweight.options import Count, Finite, Natural, Options, Positive, Share, Tasks
from mtlweight.running import updated


class SoftAdapt(LossWeighting):
    r"""SoftAdapt: favours the tasks whose loss rises, or falls least.

    $$w = \operatorname{softmax}(\beta s), \qquad s_i = \big(L_i^{(k)} - L_i^{(k-n)}\big) / n$$

    Uniform in the first n steps. With `normalized`, $s / \sum_j |s_j|$ stands for $s$; with
    `loss_weighted`, $w_i \propto L_i e^{\beta s_i}$. Ours: the mean slope over n steps, where the
    authors' code takes differences of high order, which magnify the noise of batches; no
    exponential below $e^{-10}$ of the largest; the present loss in `loss_weighted`, where that code
    takes the mean of the last ones.

    Use it when losses of one unit fall at different speeds, as the terms of a physics-informed
    loss. Not when the losses differ in scale, unless `normalized`, and then the largest still
    moves most; `DWA` and `ReLoBRaLo` compare ratios instead.

    Args:
        tasks: The names of the tasks, or their number.
        beta: $\beta$, per unit of the loss and step; below zero it favours those that fall most.
        lookback: n.
        normalized: Whether the slopes are divided by the sum of their sizes.
        loss_weighted: Whether the exponentials are multiplied by the losses.
        **options: See `Options`.

    Attributes:
        recent: The last n losses of each task, `[T, n]`.
        counts: The number of losses seen of each task, `[T]`.

    Raises:
        ValueError: With `loss_weighted`, a loss is negative.

    Source: Heydari, Thompson & Mehmood, *SoftAdapt*, arXiv 1912.12355, with the $\beta$ of the
    authors' code.
    """

    recent: Tensor
    counts: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        beta: Finite = 0.1,
        lookback: Count = 5,
        normalized: bool = False,
        loss_weighted: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(tasks, **options)
        self.beta = beta
        self.lookback = lookback
        self.normalized = normalized
        self.loss_weighted = loss_weighted
        self.register_buffer("recent", torch.zeros(self.num_tasks, lookback))
        self.register_buffer("counts", torch.zeros(self.num_tasks))

    @property
    def nonnegative_losses(self) -> bool:
        """A weight in proportion to a negative loss would be negative."""
        return self.loss_weighted

    def weights_of(self, losses: Tensor) -> Tensor:
        here = self.present
        now = losses.to(self.recent)
        recent, counts = self.recent[here], self.counts[here]
        slopes = (now - recent[:, 0]) / self.lookback
        if self.normalized:
            size = slopes.abs().sum()
            slopes = torch.where(size > 0, slopes / size, 0.0)
        shares = soft_shares(self.beta * slopes)
        if self.loss_weighted:
            shares = now * shares
        total = shares.sum()
        ready = (counts >= self.lookback).all() & (total > 0)
        shares = torch.where(ready, shares / total, 1 / len(now))
        self.recent = updated(self.recent, here, torch.cat([recent[:, 1:], now[:, None]], 1))
        self.counts = updated(self.counts, here, counts + 1)
        return shares


class ReLoBRaLo(LossWeighting):
    r"""Relative loss balancing with random lookback: favours the tasks that fell least.

    $$\hat w^{(k, k')} = \operatorname{softmax}_i \frac{L_i^{(k)}}{\tau L_i^{(k')}}, \qquad
    w^{(k)} = \alpha \big( \rho\, w^{(k-1)} + (1-\rho)\, \hat w^{(k,0)} \big)
    + (1-\alpha)\, \hat w^{(k,k-1)}$$

    with $\rho \in \{0, 1\}$ drawn anew in each step: now and then progress is measured from the
    start. The paper's weights sum to T (`rescale="tasks"`); ours to one. Ours: ratios within
    [0, 10], and one where the older loss is zero; no exponential below $e^{-10}$ of the largest;
    tasks present share anew what they had together.

    Use it when training is long and the losses fall by orders of magnitude, each at its own pace:
    it forgets slowly, and scales do not matter to the weights. Not when batches are noisy and
    $\alpha$ is small: ratios of single steps are then noise alone.

    Args:
        tasks: The names of the tasks, or their number.
        alpha: $\alpha$, the share of the past.
        rho: The probability that $\rho$ is one.
        temperature: $\tau$; the larger, the more equal the weights.
        seed: Seeds the draws.
        **options: See `Options`.

    Attributes:
        shares: $w$, `[T]`.
        first_losses: $L^{(0)}$, `[T]`; zero for tasks not seen yet.
        last_losses: $L^{(k-1)}$, `[T]`.

    Source: Bischof & Kraus, *Multi-objective loss balancing for physics-informed deep learning*,
    arXiv 2110.09813, with the defaults of the notebook that its authors published.
    """

    shares: Tensor
    first_losses: Tensor
    last_losses: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        alpha: Share = 0.999,
        rho: Share = 0.99,
        temperature: Positive = 0.1,
        seed: Natural = 0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(tasks, **options)
        self.alpha = alpha
        self.rho = rho
        self.temperature = temperature
        self.seed = seed
        self.register_buffer("shares", self.uniform())
        self.register_buffer("first_losses", torch.zeros(self.num_tasks))
        self.register_buffer("last_losses", torch.zeros(self.num_tasks))

    def weights_of(self, losses: Tensor) -> Tensor:
        here = self.present
        now = losses.to(self.shares)
        first = torch.where(self.first_losses[here] != 0, self.first_losses[here], now)
        since_start = soft_shares(relative(now, first), self.temperature)
        since_last = soft_shares(relative(now, self.last_losses[here]), self.temperature)
        # A number on the host times a tensor anywhere: the device is not waited for.
        rho = (torch.rand((), generator=self.generator()) < self.rho).float()
        held = self.shares[here]
        past = rho * held / held.sum() + (1 - rho) * since_start
        shares = self.alpha * past + (1 - self.alpha) * since_last
        self.shares = updated(self.shares, here, held.sum() * shares)
        self.first_losses = updated(self.first_losses, here, first)
        self.last_losses = updated(self.last_losses, here, now)
        return shares


def soft_shares(scores: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns the softmax of scores `[n]`, none below e^-10 of the largest.

    A spike of one task's loss would otherwise stop all the others.
    """
    return ((scores - scores.max()) / temperature).clamp_min(-10).softmax(0)


def relative(losses: Tensor, past: Tensor) -> Tensor:
    """Returns the ratios of losses `[n]` to past ones, within [0, 10]; one where those are zero."""
    return torch.where(past != 0, losses / past, 1.0).clamp(0, 10)
