"""Logarithms of the losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mtlweight.inputs import Metrics, Step
from mtlweight.options import NonNegative, OptionError
from mtlweight.strategy import Strategy, Weighed
from mtlweight.task_gradients import Shared
from mtlweight.wrappers.base import Wrapper


class LogLosses(Wrapper):
    r"""Feeds a strategy the logarithms of the losses, which takes their scales out.

    $$\ell_i = \log(L_i + \epsilon)$$

    As in `LogLosses(PCGrad(tasks))`. The weights reported are those of the losses themselves:
    the inner ones times $1 / (L_i + \epsilon)$.

    Use it when the losses are positive and of different units, with a strategy that reads their
    gradients as they are, such as `PCGrad`, `MGDA` or `NashMTL`. Not when the strategy takes
    logarithms itself, or when a loss comes close to zero, where its weight has no bound.

    Args:
        inner: The strategy to feed.
        epsilon: $\epsilon$, in the unit of the losses.

    Raises:
        OptionError: `inner` refuses negative losses, as logarithms may be.
        ValueError: A loss is negative.

    Source: Lin et al., *Dual-balancing for multi-task learning*, arXiv 2308.12029, section 3.1,
    where it helps PCGrad, GradVac, IMTL-G, CAGrad, Nash-MTL and Aligned-MTL.
    """

    def __init__(self, inner: Strategy, *, epsilon: NonNegative = 1e-8) -> None:
        if inner.nonnegative_losses:
            raise OptionError(
                f"{type(inner).__name__} reads losses that are not negative, and the logarithms of "
                "those below one are: use it without LogLosses."
            )
        super().__init__(inner)
        self.rescale = "none"  # it is the inner weights, of the logarithms, that have a length
        self.epsilon = epsilon

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
        weights = inner.weights * slopes

        def spend(value: Tensor, changed: Tensor) -> Tensor:
            return inner.spend(value, inner.weights if changed is weights else changed / slopes)

        return Weighed(weights, inner.value, spend)

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
