"""The bases of strategies that read the gradients of the tasks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from mtlweight.distributed import length_over_ranks
from mtlweight.inputs import Step
from mtlweight.options import Count, GradientOptions, Heads, Options, Tasks
from mtlweight.products import rounding_of
from mtlweight.strategy import Strategy, Weighed
from mtlweight.task_gradients import (
    Parts,
    Shared,
    Streamed,
    TaskGradients,
    are_features,
    listed,
    products_of,
    rows_of,
)


class _ReadsGradients(Strategy):
    """What the two kinds that read gradients have in common: the treatment of task heads."""

    paper_weights_heads: ClassVar[bool] = False

    def __init__(self, tasks: Tasks, *, heads: Heads = "paper", **options: Unpack[Options]) -> None:
        super().__init__(tasks, **options)
        self.heads = heads
        self.rounding = rounding_of(torch.float32)

    def paper_heads(self, weights: Tensor, losses: Tensor) -> Tensor:
        """Returns what multiplies each task's gradient outside of what is shared, `[n]`: one."""
        return torch.ones_like(weights)

    @property
    def waits(self) -> bool:
        """Each step waits: the T x T problem is solved on the host."""
        return True

    @property
    def weights_heads(self) -> bool:
        """Whether every parameter gets the weighted sum, so that the weights tell all."""
        return self.heads == "weighted" or (self.heads == "paper" and self.paper_weights_heads)

    def _weigh_products(
        self,
        step: Step,
        shared: Shared | None,
        weigh: Callable[[Tensor, Tensor], Tensor],
        chunk: int | None = None,
    ) -> Weighed:
        """Returns the weights that the Gram matrix and the losses ask for, by a given rule."""
        sought = self._seek(step, shared, weighted_heads=self.weights_heads)
        gradients = products_of(sought, self.workspace, chunk)
        gram = self._gram(gradients)
        self.rounding = rounding_of(gradients.sought.like.dtype)
        losses = step.seen.cpu().double()
        weights = self._rescaled(weigh(gram, losses), gram).to(step.seen)
        spend = self._spend_with(step, gradients)
        return Weighed(weights, (weights * step.seen).sum(), spend)

    def spend_step(self, step: Step, shared: Shared | None) -> Callable[[Tensor, Tensor], Tensor]:
        """Returns how to spend given weights; heads are treated as ever."""
        if self.weights_heads:
            return step.attach
        return self._spend_with(step, Streamed(self._seek(step, shared, weighted_heads=False)))

    def _spend_with(
        self, step: Step, gradients: TaskGradients
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Returns how to spend weights with the gradients of a step."""
        if not gradients.complete:
            return step.attach
        return lambda value, weights: gradients.spend(
            value, weights, self._head_weights(weights, step.seen)
        )

    def _head_weights(self, weights: Tensor, losses: Tensor) -> Tensor:
        if self.heads == "plain":
            return torch.ones_like(weights)
        return weights if self.weights_heads else self.paper_heads(weights, losses)


class GramStrategy(_ReadsGradients):
    """A strategy that reads the lengths and angles of the task gradients: their Gram matrix."""

    def __init__(
        self, tasks: Tasks, *, chunk: Count | None = None, **options: Unpack[GradientOptions]
    ) -> None:
        super().__init__(tasks, **options)
        self.chunk = chunk

    @abstractmethod
    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Returns the weights `[n]` of the tasks present.

        `self.rounding` tells how far cosines can be wrong.

        Args:
            gram: The inner products of their gradients, `[n, n]`, float64, on the host.
            losses: Their losses, `[n]`, float64, on the host.
        """

    def weigh_step(self, step: Step, shared: Shared | None) -> Weighed:
        """Returns what the Gram matrix asks for."""
        return self._weigh_products(step, shared, self.weigh, self.chunk)


class GradientStrategy(_ReadsGradients):
    """A strategy that reads the task gradients and builds the shared gradient itself.

    Attributes:
        on_features: During a call, whether the gradients are those of features, of which each rank
            has its own samples'.
    """

    refuses_infinite: ClassVar[bool] = False  # whether `combine` does, told by what it measures

    def __init__(self, tasks: Tasks, **options: Unpack[GradientOptions]) -> None:
        super().__init__(tasks, **options)
        self.on_features = False

    @property
    def ordered(self) -> bool:
        """Whether an entry of a gradient must keep its place, in a resumed run too."""
        return bool(self.growing)

    def tasks_read(self, count: int) -> Sequence[int]:
        """Returns which of the tasks present have their gradient read; the others' are zeros."""
        return range(count)

    @abstractmethod
    def combine(self, gradients: Tensor, losses: Tensor) -> tuple[Tensor, Tensor | Parts]:
        """Returns the weights `[n]` of the losses, and the gradient of what is shared.

        The gradient is `[P]`, or, where it is a sum over tasks, its `Parts`: a wrapper that changes
        the weight of a task then changes its part alike.

        Args:
            gradients: The gradients of the losses of the tasks present, `[n, P]`; it may overwrite
                them.
            losses: Their losses, `[n]`.
        """

    def weigh_step(self, step: Step, shared: Shared | None) -> Weighed:
        """Returns the weights of the losses, to be spent with the gradient that goes with them."""
        # Its gradient is no weighted sum of losses, so every leaf needs the pass of each task.
        sought = self._seek(step, shared, weighted_heads=False, remembered=self.ordered)
        gradients = rows_of(sought, self.workspace, self.tasks_read(len(step.index)))
        self.on_features = gradients.of_features
        gram = None
        if self.rescale == "equal-norm" or not (self.refuses_infinite or gradients.finite()):
            gram = self._gram(gradients)  # where a sum is not finite, this tells why
        weights, combined = self.combine(gradients.rows, step.seen)
        if not isinstance(combined, Parts):
            combined = Parts(None, None, combined)
        if self.rescale != "none":
            equal = self.rescale == "equal-norm"
            length = length_over_ranks(combined.sum(), self.on_features) if equal else None
            ratio = self._stretch(weights, gram, length)
            weights, combined = weights * ratio.to(weights), combined.times(ratio)

        def spend(value: Tensor, changed: Tensor) -> Tensor:
            parts = combined if changed is weights else combined.changed(weights, changed)
            return gradients.carry(value, parts, self._head_weights(changed, step.seen))

        return Weighed(weights, (weights * step.seen).sum(), spend)


class MemoryStrategy(GradientStrategy):
    """A strategy that remembers the gradients of parameters from step to step.

    Given features, which are of other samples in each step, nothing can be remembered: it goes by
    the gradients of the step alone, by their inner products.
    """

    @abstractmethod
    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Returns the weights `[n]` of the tasks present, for gradients of features.

        Args and `self.rounding` are those of `GramStrategy.weigh`.
        """

    def weigh_step(self, step: Step, shared: Shared | None) -> Weighed:
        """Returns the weights of the losses, to be spent with the gradient that goes with them."""
        given = listed(shared)
        if are_features(given):
            return self._weigh_products(step, given, self.weigh)
        return super().weigh_step(step, given)
