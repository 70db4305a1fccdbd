"""Weights from validation metrics: how far each task is from what it could be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Unpack

import torch
from pydantic import Field
from torch import Tensor

from mtlweight.inputs import Metrics
from mtlweight.loss_strategy import MetricStrategy, among
from mtlweight.options import Finite, NonNegative, OptionError, Options, Past, Positive, Tasks
from mtlweight.per_task import per_task, positive
from mtlweight.strategies.geometric import safe_inverse, safe_log

Direction = bool | Mapping[str, bool]


class DTP(MetricStrategy):
    r"""Dynamic task prioritisation: favours the tasks that are difficult, by a metric in [0, 1].

    $$w_i = -(1-\kappa_i)^\gamma \log \kappa_i$$

    with $\kappa_i$ the smoothed metric of task i (larger is better). The weights are as long as
    they come, and one before the first metrics. $\kappa$ is used within [0.001, 0.999] (ours): a
    task at zero keeps a finite weight, and one that is perfect keeps a little. The paper also
    weighs the samples within a task by the same rule; that belongs to the loss, which is the
    user's.

    Use it when every task has a metric in [0, 1], such as an accuracy, and the difficult tasks
    should come first. Not when tasks have different ceilings: one that can reach no more than 0.5
    comes first for good, where `Achievement` asks what it could reach. Nor for metrics in dB.

    Args:
        tasks: The names of the tasks, or their number.
        gamma: $\gamma$, the focus on difficult tasks.
        smoothing: The share of the past in the smoothed metrics.
        **options: See `Options`.

    Raises:
        ValueError: A metric is not between 0 and 1.

    Source: Guo et al., *Dynamic task prioritization for multitask learning*, ECCV 2018.
    """

    def __init__(
        self,
        tasks: Tasks,
        *,
        gamma: NonNegative = 1.0,
        smoothing: Past = 0.9,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(tasks, smoothing=smoothing, **options)
        self.gamma = gamma

    def initial_shares(self) -> Tensor:
        """Returns ones, `[T]`."""
        return torch.ones(self.num_tasks)

    def refuse_metric(self, task: str, metric: float) -> str | None:
        """Returns why a metric is out of range, or None."""
        return None if 0 <= metric <= 1 else "DTP reads metrics from 0 to 1, such as an accuracy"

    def weights_of(self, losses: Tensor) -> Tensor:
        return self.shares[self.present]

    def weigh(self, metrics: Tensor) -> Tensor:
        kappa = metrics.clamp(1e-3, 1 - 1e-3)
        return -((1 - kappa) ** self.gamma) * kappa.log()


class FMTL(MetricStrategy):
    r"""Focal weighting by metrics: favours the tasks that are difficult, by a metric in [0, 1].

    $$w_i = (1-\kappa_i)^\gamma \Big/ \sum_j (1-\kappa_j)^\gamma$$

    with $\kappa_i$ the smoothed metric of task i (larger is better): the focusing factor of `DTP`
    without its logarithm, made to sum to one. Uniform until the first metrics. $\kappa$ counts as
    at most 0.999 (ours), so that a task that is perfect keeps a little. The authors' code never
    uses its $\gamma$ and stays at 1; here it counts.

    Use it when every task has a metric between 0 and 1 that means the same for all, such as an
    accuracy, and no single-task networks are at hand. Not when tasks have different ceilings: one
    that can reach no more than 0.5 is favoured for good, where `Achievement` asks what it could
    reach.

    Args:
        tasks: The names of the tasks, or their number.
        gamma: $\gamma$, the focus on difficult tasks; 0 gives equal weights.
        smoothing: The share of the past in the smoothed metrics.
        **options: See `Options`.

    Raises:
        ValueError: A metric is not between 0 and 1.

    Source: the baseline `fmtl` in the authors' code for Yun & Cho, *Achievement-based training
    progress balancing for multi-task learning*, ICCV 2023, after the focal loss of Lin et al., ICCV
    2017.
    """

    def __init__(
        self,
        tasks: Tasks,
        *,
        gamma: NonNegative = 2.0,
        smoothing: Past = 0.9,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(tasks, smoothing=smoothing, **options)
        self.gamma = gamma

    def refuse_metric(self, task: str, metric: float) -> str | None:
        """Returns why a metric is out of range, or None."""
        return None if 0 <= metric <= 1 else "FMTL reads metrics from 0 to 1, such as an accuracy"

    def weigh(self, metrics: Tensor) -> Tensor:
        focus = (1 - metrics).clamp_min(1e-3) ** self.gamma
        return focus / focus.sum()


class Achievement(MetricStrategy):
    r"""Achievement-based balancing: favours the tasks furthest from their single-task networks.

    $$w_i \propto \exp r_i, \qquad r_i = \Big(1 - \frac{m_i}{(1+\epsilon)\, p_i}\Big)^\gamma, \qquad
    \mathcal{L} = \prod_i L_i^{w_i}$$

    with $m_i$ the smoothed metric of task i and $p_i$ its reference. Uniform until the first
    metrics. As $r_i$ lies between 0 and 1, the authors' softmax is nearly flat;
    `normalization="sum"` is steeper. Where the paper leaves a choice open, ours is: a task beyond
    its reference and margin counts as having reached them (the power would grow again, or not
    exist); for a metric of which less is better, $p_i / m_i$ stands for $m_i / p_i$.

    Use it when each task should come as far as a network of its own, and their metrics have
    different units: a ratio to a reference has none. Not when there is no budget for single-task
    networks, nor when metrics are in dB, whose ratios are all close to one: `FocalAchievement`
    takes differences.

    Args:
        tasks: The names of the tasks, or their number.
        references: $p$, the metrics of networks trained on one task alone, positive.
        gamma: $\gamma$, the focus on tasks that are behind.
        margin: $\epsilon$, the headroom above the references.
        smoothing: The share of the past in the smoothed metrics.
        normalization: How the weights are made to sum to one: `"softmax"` or `"sum"`.
        total: What is minimised: the `"geometric"` mean above, or the `"arithmetic"` one,
            $\sum_i w_i L_i$.
        higher_is_better: Whether more of a metric is better, for all or by task.
        **options: See `Options`.

    Raises:
        OptionError: A reference is missing or not positive.
        ValueError: A metric is negative, or zero where less of it is better; with the geometric
            total, a loss is negative.

    Source: Yun & Cho, *Achievement-based training progress balancing for multi-task learning*, ICCV
    2023, with the exponents, margin and softmax of the authors' code.
    """

    def __init__(
        self,
        tasks: Tasks,
        references: Metrics,
        *,
        gamma: NonNegative = 2.0,
        margin: NonNegative = 0.05,
        smoothing: Past = 0.9,
        normalization: Literal["softmax", "sum"] = "softmax",
        total: Literal["geometric", "arithmetic"] = "geometric",
        higher_is_better: Direction = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(tasks, smoothing=smoothing, **options)
        must = "be positive, since achievements are ratios; FocalAchievement reads differences"
        self.references = per_task(self.tasks, references, "references", positive, must)
        self.gamma = gamma
        self.margin = margin
        self.normalization = normalization
        self.total = total
        self.higher_is_better = directions(self.tasks, higher_is_better)

    @property
    def nonnegative_losses(self) -> bool:
        """A negative loss has no geometric mean with others."""
        return self.total == "geometric"

    def refuse_metric(self, task: str, metric: float) -> str | None:
        """Returns why a metric is out of range, or None."""
        if self.higher_is_better[task]:
            return None if metric >= 0 else "achievements are ratios, so it can't be negative"
        return None if metric >= 1e-300 else "achievements are ratios to it, so it must be positive"

    def weights_of(self, losses: Tensor) -> Tensor:
        w = among(self.shares, self.present)
        if self.total == "geometric":
            w = w.to(losses)
            return (w * safe_log(losses)).sum().exp() * w * safe_inverse(losses)
        return w

    def weigh(self, metrics: Tensor) -> Tensor:
        p = metrics.new_tensor(list(self.references.values()))
        up = torch.tensor(list(self.higher_is_better.values()))
        achieved = torch.where(up, metrics / p, p / metrics) / (1 + self.margin)
        r = (1 - achieved).clamp_min(0) ** self.gamma
        if self.normalization == "softmax":
            return r.softmax(0)
        return r / r.sum() if r.any() else torch.full_like(r, 1 / len(r))


class FocalAchievement(MetricStrategy):
    r"""Focal achievement: favours the tasks furthest behind a network of their own.

    $$D_i = \text{reference}_i - \text{metric}_i, \qquad w = \operatorname{softmax}(\gamma D)$$

    Uniform until the first metrics. A task may be ahead of its reference. The paper's equations
    reached us without their symbols; this is the reading that its words force, of the focusing term
    with an exponential in place of the power, normalised. Open in the paper and chosen by us:
    $\gamma$, which depends on the unit of the metric (with 1, a gap of 0.4 dB is worth a factor of
    1.5) and should be set by the user; uniform weights in the first interval; no smoothing; and the
    cap, which keeps early gaps of many dB from giving all to one task.

    Use it when the tasks share one metric, such as PSNR, and those furthest behind a network of
    their own should get more, best of all as quotas of the data. Not when metrics have different
    units: a gap counts as it is. Nor without references, or before $\gamma$ is set for the unit.

    Args:
        tasks: The names of the tasks, or their number.
        references: The metrics of networks trained on one task alone, in the metric's unit (dB).
        gamma: $\gamma$, per unit of the metric; 0 gives equal weights.
        higher_is_better: Whether more of a metric is better, for all or by task; where less is,
            $D_i = \text{metric}_i - \text{reference}_i$.
        cap: The most by which $\gamma D$ may differ between tasks: no weight falls below $e^{-cap}$
            of the largest.
        smoothing: The share of the past in the smoothed metrics.
        **options: See `Options`.

    Raises:
        OptionError: A reference is missing or not finite.

    Source: Lin et al., *Controlled data rebalancing in multi-task learning for real-world image
    super-resolution*, arXiv 2506.05607, section 3.2, eq. 3 and 4.
    """

    def __init__(
        self,
        tasks: Tasks,
        references: Metrics,
        *,
        gamma: Annotated[Finite, Field(ge=0)] = 1.0,
        higher_is_better: Direction = True,
        cap: Positive = 5.0,
        smoothing: Past = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(tasks, smoothing=smoothing, **options)
        self.references = per_task(self.tasks, references, "references")
        self.gamma = gamma
        self.cap = cap
        self.higher_is_better = directions(self.tasks, higher_is_better)

    def weigh(self, metrics: Tensor) -> Tensor:
        references = metrics.new_tensor(list(self.references.values()))
        up = torch.tensor(list(self.higher_is_better.values()))
        gaps = self.gamma * torch.where(up, references - metrics, metrics - references)
        return gaps.clamp_min(gaps.max() - self.cap).softmax(0)


def directions(tasks: tuple[str, ...], higher_is_better: Direction) -> dict[str, bool]:
    """Returns for each task whether more of its metric is better.

    Raises:
        OptionError: Names the task that is missing or unknown.
    """
    if isinstance(higher_is_better, bool):
        return dict.fromkeys(tasks, higher_is_better)
    if set(higher_is_better) != set(tasks):
        raise OptionError(
            f"`higher_is_better` is for {', '.join(higher_is_better)}, and the tasks are "
            f"{', '.join(tasks)}: give True, False, or one for each."
        )
    return {task: higher_is_better[task] for task in tasks}
