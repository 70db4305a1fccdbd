"""What all task gradients can do, and the scalar that sends them on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlweight.task_gradients.sought import Sought


class TaskGradients(ABC):
    """The gradients of the n losses of a step."""

    def __init__(self, sought: Sought) -> None:
        self.sought = sought

    @property
    def complete(self) -> bool:
        """Whether they are all that the losses depend on."""
        return self.sought.complete

    @property
    def of_features(self) -> bool:
        """Whether they are with respect to features."""
        return self.sought.of_features

    @abstractmethod
    def gram(self) -> Tensor:
        """Returns the inner products of the task gradients over all ranks, `[n, n]`, float64, host.

        A gradient 1e30 times shorter than the longest counts as none: no float32 weight could make
        up for it.
        """

    @abstractmethod
    def spend(self, value: Tensor, weights: Tensor, head_weights: Tensor) -> Tensor:
        """Returns a scalar worth `value` whose backward adds the weighted gradient to `.grad`.

        Args:
            value: What the scalar is worth, detached.
            weights: What multiplies each task's gradient in what is shared, `[n]`.
            head_weights: What multiplies it in the leaves outside, `[n]`.
        """


class Taken(TaskGradients):
    """Gradients that were taken task by task: those of the leaves that only some reach are kept.

    Attributes:
        own_gradients: By task, the leaves outside of what is shared, each with its gradient.
    """

    def __init__(self, sought: Sought) -> None:
        super().__init__(sought)
        self.own_gradients: list[list[tuple[Tensor, Tensor]]] = []

    @abstractmethod
    def item_lengths(self) -> Tensor:
        """Returns the lengths of the gradients of each of the N items of features, `[n, N]`.

        Items are told by dimension 0. In float64 where there is.

        Raises:
            ValueError: The features are of unequal numbers of items.
        """

    def _keep_own(self, task: int, found: dict[int, Tensor]) -> None:
        """Notes the gradients of a task outside of what is shared."""
        own = self.sought.own_of(task)
        mine = [(leaf, found[id(leaf)]) for leaf in own if id(leaf) in found]
        if self.sought.step.scales is not None:
            scale = self.sought.step.scales[task]
            mine = [(leaf, scale.to(gradient) * gradient) for leaf, gradient in mine]
        self.own_gradients.append(mine)

    def _carry(
        self,
        value: Tensor,
        shared: Callable[..., Iterable[tuple[Tensor, Tensor]]],
        held: Sequence[Tensor],
        head_weights: Tensor,
    ) -> Tensor:
        """Returns a scalar worth `value` that sends gradients on.

        Args:
            value: What it is worth.
            shared: Makes the gradients of what is shared from that of the scalar and what is held.
            held: Tensors that a backward frees.
            head_weights: What multiplies the gradients outside of what is shared, by task.
        """
        # What is made at backward must not refer to the rows but through what autograd frees then.
        own = [(task, *pair) for task, mine in enumerate(self.own_gradients) for pair in mine]

        def produce(scale: Tensor, *held: Tensor) -> dict[int, Tensor]:
            made = {id(tensor): gradient for tensor, gradient in shared(scale, *held)}
            if own:
                factors = (head_weights * scale.to(head_weights)).unbind()
                tasks, leaves, gradients = zip(*own, strict=True)
                sent = torch._foreach_mul(gradients, [factors[task] for task in tasks])
                for leaf, gradient in zip(leaves, sent, strict=True):
                    key = id(leaf)
                    made[key] = gradient if key not in made else made[key] + gradient
            return made

        reached = {id(leaf): leaf for _, leaf, _ in own}
        points = [tensor for tensor in self.sought.shared if tensor.requires_grad]
        return carry(value, produce, [*points, *reached.values()], held)


def carry(
    value: Tensor,
    produce: Callable[..., dict[int, Tensor]],
    points: Sequence[Tensor],
    held: Sequence[Tensor],
) -> Tensor:
    """Returns a constant whose gradient at the given points is made when it is asked for.

    Args:
        value: The constant.
        produce: Makes the gradients, by identity of the point, from the gradient of the constant
            and from what is held.
        points: Where gradients are sent.
        held: Tensors that a backward frees, as it does with what a network saves.
    """
    keys = [id(point) for point in points]

    def in_order(scale: Tensor, *held: Tensor) -> list[Tensor | None]:
        made = produce(scale, *held)
        return [made.get(key) for key in keys]

    return _Carry.apply(value, in_order, len(held), *held, *points)  # type: ignore[no-any-return]


class _Carry(torch.autograd.Function):
    """A constant with a gradient; see `carry`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, produce: Any, count: int, *tensors: Tensor) -> Tensor:
        ctx.produce = produce
        ctx.save_for_backward(*tensors[:count])
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        held = ctx.saved_tensors
        return None, None, None, *(None for _ in held), *ctx.produce(grad_output, *held)
