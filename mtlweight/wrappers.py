"""Strategies around a strategy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mtlweight.inputs import Metrics, Step
from mtlweight.options import NonNegative, OptionError
from mtlweight.strategy import Strategy, Weighed
from mtlweight.task_gradients import Shared


class LogLosses(Strategy):
    r"""Feeds a strategy the logarithms of the losses, which takes their scales out.

    $$\ell_i = \log(L_i + \epsilon)$$

    As in `LogLosses(PCGrad(tasks))`. The weights reported are those of the losses themselves:
    the inner ones times $1 / (L_i + \epsilon)$.

    Args:
        inner: The strategy to feed.
        epsilon: $\epsilon$, in the unit of the losses.

    Raises:
        OptionError: `inner` takes logarithms itself.
        ValueError: A loss is negative.

    Source: Lin et al., *Dual-balancing for multi-task learning*, arXiv 2308.12029, section 3.1,
    where it helps PCGrad, GradVac, IMTL-G, CAGrad, Nash-MTL and Aligned-MTL.
    """

    def __init__(self, inner: Strategy, *, epsilon: NonNegative = 1e-8) -> None:
        if not isinstance(inner, Strategy):
            raise OptionError(
                f"LogLosses feeds a strategy, got {inner!r}: write LogLosses(PCGrad(tasks))."
            )
        if inner.nonnegative_losses:
            raise OptionError(
                f"{type(inner).__name__} takes logarithms itself, and those of losses below one "
                "are negative: use it without LogLosses."
            )
        super().__init__(inner.tasks)
        self.inner = inner
        self.epsilon = epsilon

    @property
    def waits(self) -> bool:
        """Whether the inner strategy does."""
        return self.inner.waits

    @property
    def nonnegative_losses(self) -> bool:
        """A negative loss has no logarithm."""
        return True

    def close_epoch(self, metrics: Metrics | None) -> None:
        """Closes the inner epoch, and follows what it changed."""
        before = self.inner.epoch_weights.mean(default=self.inner.weights)
        self.inner.end_epoch(metrics)
        changed = torch.where(before != 0, self.inner.weights / before, 1.0)
        self.weights = self.weights * changed

    def weigh_step(self, step: Step, shared: Shared | None) -> Weighed:
        """Returns the inner weights of the logarithms, as weights of the losses."""
        logs = self._logs(step)
        slopes = 1 / (step.seen + self.epsilon)
        inner = self.inner.advance(logs, shared)
        return Weighed(
            inner.weights * slopes,
            inner.value,
            lambda value, weights: inner.spend(value, weights / slopes),
        )

    def spend_step(self, step: Step, shared: Shared | None) -> Callable[[Tensor, Tensor], Tensor]:
        """Returns how the inner strategy spends weights."""
        spend = self.inner.spend_step(self._logs(step), shared)
        return lambda value, weights: spend(value, weights * (step.seen + self.epsilon))

    def _logs(self, step: Step) -> Step:
        seen = (step.seen + self.epsilon).log()
        # The slope of the logarithm at the mean over ranks, which this rank's loss is a part of.
        slopes = 1 / (step.seen[step.local] + self.epsilon)
        return replace(
            step,
            seen=seen,
            values=seen[step.local] + slopes * (step.values - step.values.detach()),
            slopes=slopes if step.slopes is None else step.slopes * slopes,
            others=tuple(self._logs(other) for other in step.others),
        )
