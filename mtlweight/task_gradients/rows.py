"""Task gradients one by one, each a row."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor

from mtlweight.distributed import products_over_ranks, sum_over_ranks, world_size
from mtlweight.products import gram_of, widest, without_rounding
from mtlweight.task_gradients.base import Taken
from mtlweight.task_gradients.layers import Layer, Linear
from mtlweight.task_gradients.parts import Parts
from mtlweight.task_gradients.sought import Sought
from mtlweight.task_gradients.workspace import Workspace


class Rows(Taken):
    """The gradients themselves; those of some layers as gradients of their outputs.

    Attributes:
        rows: The gradients with respect to what the tasks share, flattened, `[n, P]`, float32 or
            float64, without the layers.
    """

    def __init__(
        self,
        sought: Sought,
        workspace: Workspace,
        layers: Sequence[Layer] = (),
        read: Collection[int] | None = None,
        *,
        only_products: bool = False,
    ) -> None:
        super().__init__(sought)
        n, like = len(sought.names), sought.like
        # A linear layer that does not pay is read here too: its gradients then need no copy.
        exact = [layer for layer in layers if layer.weight.dtype == like.dtype]  # no half precision
        self.layers = [layer for layer in exact if only_products and layer.pays(n)]
        self._written = [
            layer for layer in exact if isinstance(layer, Linear) and layer not in self.layers
        ]
        inside = {id(leaf) for layer in self.layers for leaf in layer.leaves}
        self.columns = [tensor for tensor in sought.shared if id(tensor) not in inside]
        self._sizes = [tensor.numel() for tensor in self.columns]
        size = sum(self._sizes)
        self.rows = workspace.borrow(n, size, like)
        written = {id(leaf) for layer in self._written for leaf in layer.leaves}
        copied = [tensor for tensor in self.columns if id(tensor) not in written]
        if sought.branches is not None and (read is None or len(read) == n):
            self._read_branches()
        else:
            for task in range(n):
                if read is None or task in read:
                    self._read(task, copied, [*self.layers, *self._written])
                else:
                    self._read(task, [], [])
        if sought.step.scales is not None:
            self.rows *= sought.step.scales.to(self.rows)[:, None]
        if world_size() > 1 and not sought.of_features:
            self.rows = sum_over_ranks(self.rows) / world_size()

    def _read(self, task: int, copied: list[Tensor], layers: list[Layer]) -> None:
        """Takes the gradients of a task, those of some tensors to copy and of some layers."""
        sought, own = self.sought, self.sought.own_of(task)
        scale = None if sought.step.scales is None else sought.step.scales[task]
        found, at_edges = sought.of_task(task, [*copied, *own], [layer.edge for layer in layers])
        pieces = torch.split(self.rows[task], self._sizes)
        places = {id(t): piece for t, piece in zip(self.columns, pieces, strict=True)}
        for layer, gradient in zip(layers, at_edges, strict=True):
            if layer in self.layers:
                layer.take(task, len(sought.names), _scaled(gradient, scale))
            elif gradient is not None:
                assert isinstance(layer, Linear)
                layer.write(gradient, [places.pop(id(leaf)) for leaf in layer.leaves])
        for layer in self.layers if not layers else ():
            layer.take(task, len(sought.names), None)
        gradients = [(places.pop(id(t)), found[id(t)]) for t in copied if id(t) in found]
        if gradients:
            torch._foreach_copy_(
                [place.view_as(gradient) for place, gradient in gradients],
                [gradient for _, gradient in gradients],
            )
        for place in places.values():
            place.zero_()
        self._keep_own(task, found)

    def _read_branches(self) -> None:
        """Takes the gradients of all tasks in one pass through their heads."""
        pieces = [torch.split(row, self._sizes) for row in self.rows]
        missing = {(task, place) for task, row in enumerate(pieces) for place in range(len(row))}

        def receive(task: int, place: int, gradient: Tensor) -> None:
            to = pieces[task][place].view_as(gradient)
            if (task, place) in missing:
                missing.remove((task, place))
                to.copy_(gradient)
            else:
                to.add_(gradient)

        found = self.sought.of_branches(receive)
        for task, place in missing:
            pieces[task][place].zero_()
        for task in range(len(pieces)):
            self._keep_own(task, found)

    def finite(self) -> bool:
        """Tells whether the rows are finite on all ranks, by one quick look at all numbers."""
        sums = self.rows.sum(1)
        if self.of_features:  # of which the other ranks have other parts
            sums = sum_over_ranks(sums)
        return bool(sums.isfinite().all())

    def gram(self) -> Tensor:
        """Returns the inner products; see `TaskGradients`."""
        gram = gram_of(self.rows)
        for layer in self.layers:
            gram += layer.gram().cpu().double()
        if self.sought.of_features:
            gram = products_over_ranks(gram, self.rows.device)
        return without_rounding(gram)

    def item_lengths(self) -> Tensor:
        """Returns the lengths of each item's gradients; see `Taken`."""
        shapes = [tensor.shape for tensor in self.columns]
        numbers = {shape[0] if shape else 1 for shape in shapes}
        if len(numbers) > 1:
            raise ValueError(
                f"The features in `shared` are of {sorted(numbers)} items, dimension 0 of each: "
                "give features of the same batch, or `shared=encoder.parameters()`."
            )
        n, items, wide = len(self.rows), numbers.pop(), widest(self.rows)
        lengths = [
            torch.linalg.vector_norm(piece.reshape(n, items, -1), dim=2, dtype=wide)
            for piece in torch.split(self.rows, self._sizes, dim=1)
        ]
        found: Tensor = torch.linalg.vector_norm(torch.stack(lengths), dim=0)
        return found

    def spend(self, value: Tensor, weights: Tensor, head_weights: Tensor) -> Tensor:
        """Returns the scalar; see `TaskGradients`."""
        layers, split = self.layers, self._split()

        def shared(scale: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            scaled = weights * scale.to(weights)
            yield from split(scaled.to(rows) @ rows)
            for layer in layers:
                yield from layer.combined(scaled)

        return self._carry(value, shared, [self.rows], head_weights)

    def carry(self, value: Tensor, gradient: Tensor | Parts, head_weights: Tensor) -> Tensor:
        """Returns a scalar worth `value` whose backward adds a gradient `[P]` to `.grad`."""
        parts = gradient if isinstance(gradient, Parts) else Parts(None, None, gradient)
        c = parts.coefficients if parts.total is None else None
        split = self._split()

        def shared(scale: Tensor, held: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            yield from split(
                held * scale.to(held) if c is None else (c * scale.to(c)).to(held) @ held
            )

        return self._carry(value, shared, [parts.held()], head_weights)

    def _split(self) -> Callable[[Tensor], Iterator[tuple[Tensor, Tensor]]]:
        """Returns what splits a gradient `[P]` by tensor, without a reference to the rows."""
        columns, sizes = self.columns, self._sizes

        def split(gradient: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            for tensor, piece in zip(columns, torch.split(gradient, sizes), strict=True):
                yield tensor, piece.view_as(tensor).to(tensor.dtype)

        return split


def _scaled(gradient: Tensor | None, scale: Tensor | None) -> Tensor | None:
    return gradient if gradient is None or scale is None else scale.to(gradient) * gradient
