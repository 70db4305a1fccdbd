"""Constant weights at the start."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mtlweight.inputs import Metrics, Step
from mtlweight.loss_strategy import among
from mtlweight.options import Natural
from mtlweight.per_task import shares_of
from mtlweight.strategy import Strategy, Weighed
from mtlweight.task_gradients import Shared
from mtlweight.wrappers.base import Wrapper


class WarmUp(Wrapper):
    """Trains by equal weights at first, and by those of a strategy from then on.

    As in `WarmUp(5, DWA(tasks))`, for five epochs. After the warm-up the wrapper does nothing. The
    weights of tasks absent from a step are shared among those present. Ours: a strategy that reads
    losses sees the steps of the warm-up, so that its statistics and what it learns are ready at its
    end; one that reads gradients does not, since they would cost its backward passes for nothing.
    Metrics reach both.

    Use it when the first losses, gradients or metrics say little about what training needs later,
    as with a network that is not pretrained. Not when the strategy has a start of its own: `DWA`
    has equal weights for two epochs, and those that read metrics for one.

    Args:
        duration: How long to warm up, in `unit`s; with 0 not at all.
        inner: The strategy to go on with.
        unit: `"epochs"`, which `end_epoch` closes, or `"steps"`.
        weights: The weights to begin with, in place of equal ones that sum to one: a mapping from
            task name, or `[T]`, non-negative and not all zero.

    Attributes:
        constants: The weights to begin with, `[T]`; an option, which is not saved.

    Raises:
        OptionError: `duration` is negative; or a weight is missing, negative or not finite, or all
            are zero.

    Source: ours.
    """

    constants: Tensor

    def __init__(
        self,
        duration: Natural,
        inner: Strategy,
        *,
        unit: Literal["epochs", "steps"] = "epochs",
        weights: Metrics | None = None,
    ) -> None:
        super().__init__(inner)
        self.duration = duration
        self.unit = unit
        constants = self.uniform()
        if weights is not None:
            constants = torch.tensor(shares_of(self.tasks, weights, "weights"))
        self.register_buffer("constants", constants, persistent=False)
        if duration > 0:
            self.weights = constants.clone()

    @property
    def warming(self) -> bool:
        """Whether the next step goes by the weights of the warm-up."""
        return (self.epoch if self.unit == "epochs" else self.step) < self.duration

    @property
    def inner_sees(self) -> bool:
        """Whether the steps of the warm-up reach the inner strategy."""
        return not self.innermost.waits  # those that read gradients do

    @property
    def waits(self) -> bool:
        """Whether the inner strategy does, in the steps that reach it."""
        return self.inner.waits and (self.inner_sees or not self.warming)

    def weigh_step(self, step: Step, shared: Shared | None) -> Weighed:
        """Returns the weights of the warm-up, or, after it, those of the inner strategy."""
        if not self.warming:
            return self.inner.advance(step, shared)
        weights = self.as_long(among(self.constants, self.present).to(step.seen))
        if not self.inner_sees:
            return self.reweighed(step, weights, self.inner.spend_step(step, shared))
        inner = self.inner.advance(step, shared)
        return self.reweighed(step, weights, inner.spend, inner.value)

    def close_epoch(self, metrics: Metrics | None) -> None:
        """Closes the inner epoch, and goes by its weights if the warm-up is over."""
        self.inner.end_epoch(metrics)
        done = self.epoch + 1 if self.unit == "epochs" else self.step
        new = self.constants if done < self.duration else self.inner.weights
        self.weights = new.clone()  # a load writes into each: they must not be one tensor
