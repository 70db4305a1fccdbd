"""What all wrappers have in common."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mtlweight.inputs import Metrics, Step
from mtlweight.strategy import Strategy, Weighed
from mtlweight.task_gradients import Shared


class Wrapper(Strategy):
    """A strategy around a strategy: changes its weights, and has it spend them.

    A wrapper of your own overrides `change`. Options such as `rescale` are given to the strategy
    within. `rescale="one"` and `"tasks"` hold of the changed weights too; `"equal-norm"` is that of
    the inner ones. Heads are treated as the inner strategy treats them, and what a wrapper returns
    is worth the weighted sum of the losses.

    Args:
        inner: The strategy to wrap; a wrapper, too.

    Attributes:
        inner: The strategy within, which keeps a state of its own.

    Raises:
        OptionError: `inner` is no strategy.

    Source: ours.
    """

    def __init__(self, inner: Strategy) -> None:
        super().__init__(inner.tasks, rescale=inner.rescale, check=inner.check)
        self.inner = inner
        self.weights = inner.weights.clone()

    @property
    def waits(self) -> bool:
        """Whether the inner strategy does."""
        return self.inner.waits

    @property
    def nonnegative_losses(self) -> bool:
        """Whether the inner strategy refuses negative losses."""
        return self.inner.nonnegative_losses

    @property
    def innermost(self) -> Strategy:
        """The strategy within all wrappers."""
        inner = self.inner
        while isinstance(inner, Wrapper):
            inner = inner.inner
        return inner

    def change(self, weights: Tensor) -> Tensor:
        """Returns what becomes of inner weights.

        Args:
            weights: Those of the tasks present, `[n]`; `self.present` tells which they are. At the
                end of an epoch those of all.
        """
        return weights

    def weigh_step(self, step: Step, shared: Shared | None) -> Weighed:
        """Returns the inner weights, changed."""
        inner = self.inner.advance(step, shared)
        weights = self.as_long(self.change(inner.weights))
        return self.reweighed(step, weights, inner.spend, inner.value)

    def spend_step(self, step: Step, shared: Shared | None) -> Callable[[Tensor, Tensor], Tensor]:
        """Returns how the inner strategy spends weights."""
        return self.inner.spend_step(step, shared)

    def close_epoch(self, metrics: Metrics | None) -> None:
        """Closes the inner epoch, and changes the weights that it announces for the next."""
        announced = self.close_inner(metrics)
        self.weights = torch.where(announced, self.change(self.inner.weights), self.weights)

    def close_inner(self, metrics: Metrics | None) -> Tensor:
        """Closes the inner epoch; returns whether it gave the next one weights of its own, `[]`.

        Told by the innermost strategy: otherwise its weights are their mean over the epoch.
        """
        innermost = self.innermost
        mean = innermost.epoch_weights.mean(default=innermost.weights)
        if innermost.rescale in ("one", "tasks"):
            mean = innermost._rescaled(mean, None)
        self.inner.end_epoch(metrics)
        return (innermost.weights != mean).any()

    def reweighed(
        self,
        step: Step,
        weights: Tensor,
        spend: Callable[[Tensor, Tensor], Tensor],
        inner_value: Tensor | None = None,
    ) -> Weighed:
        """Returns changed weights, whose scalar is worth the weighted sum of the losses.

        Args:
            step: The losses.
            weights: Their weights, `[n]`.
            spend: Makes the scalar.
            inner_value: What the inner scalar is worth. If parameters of the inner strategy are
                learned through it, they are learned through the new scalar.
        """
        value = (weights * step.seen).sum()
        if inner_value is not None and inner_value.requires_grad:
            value = value + (inner_value - inner_value.detach())
        return Weighed(weights, value, spend)

    def as_long(self, weights: Tensor) -> Tensor:
        """Returns the weights in the length that the `rescale` of the inner strategy asks for."""
        return self._rescaled(weights, None) if self.rescale in ("one", "tasks") else weights
