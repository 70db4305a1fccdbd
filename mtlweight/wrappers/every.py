"""Weights that are kept for some steps."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from mtlweight.inputs import Metrics, Step
from mtlweight.options import Count
from mtlweight.running import updated
from mtlweight.strategy import Strategy, Weighed
from mtlweight.task_gradients import Shared
from mtlweight.wrappers.base import Wrapper


class Every(Wrapper):
    """Computes the weights every R steps, and goes by them until they are computed again.

    As in `Every(10, NashMTL(tasks))`. Only steps that compute weights reach the inner strategy: in
    the others no task gradient is taken, so a step costs what plain training does. Ours: the first
    step of an epoch computes; so does a step with a task that the latest computation did not have,
    since weights of different computations do not belong together; and the R steps are counted from
    the latest computation. A step that lacks some of its tasks takes the weights of the others as
    they are.

    Use it when the T backward passes of a strategy that reads gradients cost too much, and its
    weights change slowly. Not when its gradient is more than a weighted sum, such as one that
    remembers or masks: in the steps between it is the weighted sum of the losses. Nor when batches
    hold few of the tasks, since then most steps compute.

    Args:
        steps: R, at least 1.
        inner: The strategy that computes the weights.

    Attributes:
        held: The weights to go by, `[T]`.
        held_tasks: The numbers of the tasks that the latest computation had.
        left: How many steps still go by it.

    Raises:
        OptionError: `steps` is below one.

    Source: Navon et al., *Multi-task learning as a bargaining game* (Nash-MTL), ICML 2022, section
    5, where R is up to 100.
    """

    carried: ClassVar[tuple[str, ...]] = (*Wrapper.carried, "held_tasks", "left")
    held: Tensor

    def __init__(self, steps: Count, inner: Strategy) -> None:
        super().__init__(inner)
        self.steps = steps
        self.held_tasks: list[int] = []
        self.left = 0
        self.register_buffer("held", inner.weights.clone())

    @property
    def waits(self) -> bool:
        """Whether the inner strategy does, in the steps that reach it."""
        return self.left == 0 and self.inner.waits

    def weigh_step(self, step: Step, shared: Shared | None) -> Weighed:
        """Returns new weights if it is time, or else those held."""
        if self.left > 0 and set(step.index) <= set(self.held_tasks):
            self.left -= 1
            held = self.as_long(self.held[self.present].to(step.seen))
            return self.reweighed(step, held, self.inner.spend_step(step, shared))
        inner = self.inner.advance(step, shared)
        self.held = updated(self.held, self.present, inner.weights)
        self.held_tasks = list(step.index)
        self.left = self.steps - 1
        return self.reweighed(step, inner.weights, inner.spend, inner.value)

    def after_bad_step(self) -> None:
        """Computes anew: the bad step may have been the one to compute."""
        self.left = 0

    def close_epoch(self, metrics: Metrics | None) -> None:
        """Closes the inner epoch; the next begins with new weights."""
        super().close_epoch(metrics)
        self.left = 0
