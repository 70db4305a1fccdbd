"""Weights from what is kept of the losses: a first one, or means and spreads."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from mtlweight.inputs import Metrics
from mtlweight.loss_strategy import LossWeighting
from mtlweight.options import NonNegative, Options, Past, Tasks
from mtlweight.running import updated
from mtlweight.strategies.loss_trends import relative


class LBTW(LossWeighting):
    r"""Loss-balanced task weighting: favours the tasks whose loss fell least in this epoch.

    $$w_i = \big(L_i / L_i^{(0)}\big)^\alpha$$

    with $L_i^{(0)}$ the first loss of task i in the epoch, and the weights held constant in the
    derivative. All weights are one in the first step of an epoch, and their sum is not fixed.
    Ratios are kept within [0, 10] (ours).

    Use it when tasks that learn fast should make room for the others, and one first batch is a fair
    measure of a loss. Not when batches are small or their losses heavy-tailed: one unlucky first
    batch sets the weights of the whole epoch.

    Args:
        tasks: The names of the tasks, or their number.
        alpha: $\alpha$, how much the ratio counts; 0 gives the sum of the losses.
        **options: See `Options`.

    Attributes:
        first_losses: $L^{(0)}$, `[T]`; zero for tasks not seen in this epoch.

    Source: Liu, Liang & Gitter, *Loss-balanced task weighting to reduce negative transfer in
    multi-task learning*, AAAI 2019. The rule and $\alpha$ are known to us from general knowledge,
    not from the paper's own page.
    """

    first_losses: Tensor

    def __init__(
        self, tasks: Tasks, *, alpha: NonNegative = 0.5, **options: Unpack[Options]
    ) -> None:
        super().__init__(tasks, **options)
        self.alpha = alpha
        self.register_buffer("first_losses", torch.zeros(self.num_tasks))

    def weights_of(self, losses: Tensor) -> Tensor:
        now = losses.to(self.first_losses)
        first = self.first_losses[self.present]
        first = torch.where(first != 0, first, now)
        self.first_losses = updated(self.first_losses, self.present, first)
        return relative(now, first) ** self.alpha

    def close_epoch(self, metrics: Metrics | None) -> None:
        """Forgets the first losses: those of the next epoch take their place."""
        self.first_losses = torch.zeros_like(self.first_losses)


class CoV(LossWeighting):
    r"""Coefficient of variation weighting: favours the tasks whose loss ratio still varies.

    $$\ell_i = L_i / \mu_{L_i}, \qquad w_i = \frac{c_i}{\sum_j c_j}, \qquad
    c_i = \sigma_{\ell_i} / \mu_{\ell_i}$$

    with the means $\mu$ and the standard deviation $\sigma$ of all steps before this one. Uniform
    until each task present was seen twice; a task whose ratio does not vary keeps $\sigma =
    10^{-4}$. Ratios are kept within [0, 10], and their means above $10^{-4}$ (ours).

    Use it when losses have different scales and a task that has settled should yield to those that
    have not. Not when one task is much noisier than the others: what varies from batch to batch
    counts like progress.

    Args:
        tasks: The names of the tasks, or their number.
        decay: The share of the past in the means; by default all steps count alike.
        **options: See `Options`.

    Attributes:
        counts: The number of losses seen of each task, `[T]`.
        loss_means: $\mu_L$, `[T]`.
        ratio_means: $\mu_\ell$, `[T]`.
        ratio_variances: $\sigma_\ell^2$, `[T]`.

    Source: Groenendijk, Karaoglu, Gevers & Mensink, *Multi-loss weighting with coefficient of
    variations*, WACV 2021, with the statistics of the authors' code.
    """

    counts: Tensor
    loss_means: Tensor
    ratio_means: Tensor
    ratio_variances: Tensor

    def __init__(
        self, tasks: Tasks, *, decay: Past | None = None, **options: Unpack[Options]
    ) -> None:
        super().__init__(tasks, **options)
        self.decay = decay
        for name in ("counts", "loss_means", "ratio_means", "ratio_variances"):
            self.register_buffer(name, torch.zeros(self.num_tasks))

    def weights_of(self, losses: Tensor) -> Tensor:
        here = self.present
        now = losses.to(self.loss_means)
        count = self.counts[here] + 1
        loss_mean, mean, variance = (
            self.loss_means[here],
            self.ratio_means[here],
            self.ratio_variances[here],
        )
        c = (variance + 1e-8).sqrt() / mean.clamp_min(1e-4)  # the same bound for both
        shares = torch.where((count > 2).all(), c / c.sum(), 1 / len(now))
        new = 1 / count if self.decay is None else torch.where(count > 1, 1 - self.decay, 1.0)
        ratio = relative(now, loss_mean)
        new_mean = torch.lerp(mean, ratio, new)
        product = (ratio - mean) * (ratio - new_mean)
        self.counts = updated(self.counts, here, count)
        self.loss_means = updated(self.loss_means, here, torch.lerp(loss_mean, now, new))
        self.ratio_means = updated(self.ratio_means, here, new_mean)
        self.ratio_variances = updated(
            self.ratio_variances, here, variance + (product - variance) / count
        )
        return shares


class SLAW(LossWeighting):
    r"""Scaled loss approximate weighting: divides each loss by its spread over the steps.

    $$w_i = \frac{1 / s_i}{\sum_j 1 / s_j}, \qquad
    s_i = \sqrt{\overline{L_i^2} - \overline{L_i}^2}$$

    with exponential means over the steps up to this one. The spread of a loss from step to step
    grows with its gradient, so that this comes close to gradients of equal length at the cost of
    none. The paper's weights sum to T (`rescale="tasks"`); ours to one. A task without spread yet,
    $s_i \le 10^{-6}\, \overline{L_i}$, gets the mean weight of the others, and all get the same
    where none has any (ours).

    Use it when gradients differ in length and T backward passes are too dear. Not when batches are
    of different difficulty or losses have heavy tails: the spread then is that of the data, not of
    the steps.

    Args:
        tasks: The names of the tasks, or their number.
        beta: The share of the past in the means.
        **options: See `Options`.

    Attributes:
        means: $\overline{L}$, `[T]`; zero for tasks not seen yet.
        spreads: $s$, `[T]`.

    Source: Crawshaw & Košecká, *SLAW: scaled loss approximate weighting for efficient multi-task
    learning*, arXiv 2109.08218. $\beta$ is that of published implementations by others.
    """

    means: Tensor
    spreads: Tensor

    def __init__(self, tasks: Tasks, *, beta: Past = 0.99, **options: Unpack[Options]) -> None:
        super().__init__(tasks, **options)
        self.beta = beta
        self.register_buffer("means", torch.zeros(self.num_tasks))
        self.register_buffer("spreads", torch.zeros(self.num_tasks))

    def weights_of(self, losses: Tensor) -> Tensor:
        here, beta = self.present, self.beta
        now = losses.to(self.means)
        mean = torch.where(self.means[here] != 0, self.means[here], now)
        # The difference of the paper's two means, without squares, which overflow and cancel.
        jump = (1 - beta) ** 0.5 * (now - mean)
        spread = beta**0.5 * torch.hypot(self.spreads[here], jump)
        mean = torch.lerp(now, mean, beta)
        self.means = updated(self.means, here, mean)
        self.spreads = updated(self.spreads, here, spread)
        varies = spread > 1e-6 * mean.abs()
        least = torch.where(varies, spread, torch.inf).min()
        inverses = torch.where(varies, least / spread, 0.0)
        inverses = torch.where(varies, inverses, inverses.sum() / varies.sum())
        return torch.where(varies.any(), inverses / inverses.sum(), 1 / len(now))
