"""Task gradients that are never all there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mtlweight.task_gradients.base import TaskGradients, carry
from mtlweight.task_gradients.passes import backward_pass
from mtlweight.task_gradients.rows import Rows
from mtlweight.task_gradients.sought import Sought, start_of
from mtlweight.task_gradients.workspace import Workspace


class Streamed(TaskGradients):
    """Gradients that nobody looks at: the weights are known, and the network is walked once."""

    def gram(self) -> Tensor:
        """Refuses: there are no gradients to multiply.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("Gradients that are only to be spent were not taken one by one.")

    def spend(self, value: Tensor, weights: Tensor, head_weights: Tensor) -> Tensor:
        """Returns the scalar; see `TaskGradients`."""
        sought = self.sought
        shared = [tensor for tensor in sought.shared if tensor.requires_grad]
        own = [leaf for leaf, _ in sought.own if leaf.requires_grad]
        sent = {}
        for tensors, factors in ((shared, weights), (own, head_weights)):
            for tensor, gradient in zip(tensors, self._backward(tensors, factors), strict=True):
                if gradient is not None:
                    sent[id(tensor)] = gradient

        def produce(scale: Tensor, *held: Tensor) -> dict[int, Tensor]:
            return {
                key: scale.to(gradient.dtype) * gradient
                for key, gradient in zip(keys, held, strict=True)
            }

        keys = list(sent)
        points = [tensor for tensor in [*shared, *own] if id(tensor) in sent]
        return carry(value, produce, points, list(sent.values()))

    def _backward(self, tensors: list[Tensor], weights: Tensor) -> Sequence[Tensor | None]:
        """Returns the gradient of the weighted sum of this rank's losses."""
        if not tensors:
            return []
        step = self.sought.step
        slopes = weights[step.local].to(step.values.dtype)
        if step.scales is not None:
            slopes = slopes * step.scales.to(slopes)
        starts = [start_of(root, slope) for root, slope in zip(step.roots, slopes, strict=True)]
        return backward_pass(step.roots, starts, tensors)


class Chunked(Streamed):
    """Gradients of which some entries are held at a time: after the products, one more walk."""

    def __init__(self, sought: Sought, chunk: int) -> None:
        super().__init__(sought)
        n, workspace = len(sought.names), Workspace()
        self._gram = torch.zeros(n, n, dtype=torch.float64)
        for group in _groups(sought.shared, chunk):
            part = Rows(replace(sought, shared=group, own=[], complete=False), workspace)
            self._gram += part.gram()
            del part

    def gram(self) -> Tensor:
        """Returns the inner products; see `TaskGradients`."""
        return self._gram


def _groups(tensors: Sequence[Tensor], chunk: int) -> Iterator[list[Tensor]]:
    """Yields the tensors in groups of at most `chunk` numbers, or of one tensor."""
    group: list[Tensor] = []
    for tensor in tensors:
        if group and sum(t.numel() for t in group) + tensor.numel() > chunk:
            yield group
            group = []
        group.append(tensor)
    if group:
        yield group
