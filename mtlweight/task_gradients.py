"""Task gradients: taken once for each loss, and sent on by the scalar that is returned.

What they are taken of is in `sought`; gradients at another point, and slopes along one direction,
are in `look_ahead` and `slopes`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mtlweight.distributed import sum_over_ranks, world_size
from mtlweight.inputs import Step
from mtlweight.layers import Layer, Linear, find_layers
from mtlweight.products import gram_of, without_rounding
from mtlweight.shared_leaves import SharedLeaves
from mtlweight.sought import Shared, Sought, seek, start_of
from mtlweight.workspace import Workspace


@dataclass(frozen=True)
class Parts:
    r"""A gradient made of one part per task, $\sum_i c_i v_i$.

    Attributes:
        coefficients: c, `[n]`; None where the gradient can't be told apart by task.
        vectors: v, `[n, P]`, or what makes them when they are asked for.
        total: The gradient, `[P]`, where it is at hand.
    """

    coefficients: Tensor | None
    vectors: Tensor | Callable[[], Tensor] | None
    total: Tensor | None = None

    def sum(self) -> Tensor:
        """Returns the gradient, `[P]`."""
        held = self.held()
        if self.total is not None:
            return held
        assert self.coefficients is not None
        return self.coefficients.to(held) @ held

    def held(self) -> Tensor:
        """Returns the gradient if it is at hand, else the vectors."""
        if self.total is not None:
            return self.total
        vectors = self.vectors() if callable(self.vectors) else self.vectors
        assert vectors is not None
        return vectors

    def times(self, factor: Tensor) -> Parts:
        """Returns the gradient times a number."""
        c, total = (
            None if x is None else x * factor.to(x) for x in (self.coefficients, self.total)
        )
        return Parts(c, self.vectors, total)

    def changed(self, weights: Tensor, new: Tensor) -> Parts:
        """Returns the gradient after the weights `[n]` of the tasks were changed to new ones.

        Each part follows the weight of its task; one that had no weight is weighted anew. A
        gradient without parts follows the sum of the weights.
        """
        if self.coefficients is None:
            before = weights.sum()
            return self.times(torch.where(before != 0, new.sum() / before, 1.0))
        follow = self.coefficients * (new / weights).to(self.coefficients)
        kept = torch.where(weights != 0, follow, new.to(self.coefficients))
        return Parts(kept, self.vectors)


class TaskGradients(ABC):
    """The gradients of the n losses of a step."""

    def __init__(self, sought: Sought) -> None:
        self.sought = sought
        self.unused = True

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


class Rows(TaskGradients):
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
        self.layers = [layer for layer in layers if only_products and layer.pays(n)]
        self._written = [
            layer
            for layer in layers
            if isinstance(layer, Linear)
            and layer not in self.layers
            and layer.weight.dtype == like.dtype
        ]
        inside = {id(leaf) for layer in self.layers for leaf in layer.leaves}
        self.columns = [tensor for tensor in sought.shared if id(tensor) not in inside]
        self._sizes = [tensor.numel() for tensor in self.columns]
        size = sum(self._sizes)
        self.rows = workspace.borrow(n, size, like)
        self.own_gradients: list[list[tuple[Tensor, Tensor]]] = []  # by task: leaf and gradient
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
        self.unused &= all(gradient is None for gradient in at_edges)
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
            self.unused = False
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
        self.unused = len(missing) == len(pieces) * len(self._sizes)
        for task, place in missing:
            pieces[task][place].zero_()
        for task in range(len(pieces)):
            self._keep_own(task, found)

    def _keep_own(self, task: int, found: dict[int, Tensor]) -> None:
        """Notes the gradients of a task outside of what is shared."""
        own = self.sought.own_of(task)
        mine = [(leaf, found[id(leaf)]) for leaf in own if id(leaf) in found]
        if self.sought.step.scales is not None:
            scale = self.sought.step.scales[task]
            mine = [(leaf, scale.to(gradient) * gradient) for leaf, gradient in mine]
        self.own_gradients.append(mine)

    def gram(self) -> Tensor:
        """Returns the inner products; see `TaskGradients`."""
        gram = gram_of(self.rows)
        for layer in self.layers:
            gram += layer.gram().cpu().double()
        if self.sought.of_features:
            gram = sum_over_ranks(gram.to(self.rows.device)).cpu() / world_size() ** 2
        return without_rounding(gram)

    def spend(self, value: Tensor, weights: Tensor, head_weights: Tensor) -> Tensor:
        """Returns the scalar; see `TaskGradients`."""
        layers = self.layers

        def shared(scale: Tensor, rows: Tensor) -> Iterator[tuple[Tensor | None, Tensor]]:
            scaled = weights * scale.to(weights)
            yield None, scaled.to(rows) @ rows
            for layer in layers:
                yield from layer.combined(scaled)

        return self._carry(value, shared, self.rows, head_weights)

    def carry(self, value: Tensor, gradient: Tensor | Parts, head_weights: Tensor) -> Tensor:
        """Returns a scalar worth `value` whose backward adds a gradient `[P]` to `.grad`."""
        parts = gradient if isinstance(gradient, Parts) else Parts(None, None, gradient)
        c = parts.coefficients if parts.total is None else None

        def shared(scale: Tensor, held: Tensor) -> Iterator[tuple[Tensor | None, Tensor]]:
            yield None, held * scale.to(held) if c is None else (c * scale.to(c)).to(held) @ held

        return self._carry(value, shared, parts.held(), head_weights)

    def _carry(
        self,
        value: Tensor,
        shared: Callable[[Tensor, Tensor], Iterator[tuple[Tensor | None, Tensor]]],
        held: Tensor,
        head_weights: Tensor,
    ) -> Tensor:
        # What is made at backward must not refer to the rows but through what autograd frees then.
        own, columns, sizes = self.own_gradients, self.columns, self._sizes

        def produce(scale: Tensor, held: Tensor) -> dict[int, Tensor]:
            made = {}
            for leaf, gradient in shared(scale, held):
                if leaf is not None:
                    made[id(leaf)] = gradient
                    continue
                for tensor, piece in zip(columns, torch.split(gradient, sizes), strict=True):
                    made[id(tensor)] = piece.view_as(tensor).to(tensor.dtype)
            factors = (head_weights * scale.to(head_weights)).unbind()
            for factor, mine in zip(factors, own, strict=True):
                for leaf, gradient in mine:
                    key, sent = id(leaf), gradient * factor.to(gradient.dtype)
                    made[key] = sent if key not in made else made[key] + sent
            return made

        reached = {id(leaf): leaf for mine in own for leaf, _ in mine}
        points = [tensor for tensor in self.sought.shared if tensor.requires_grad]
        return _carry(value, produce, [*points, *reached.values()], [held])


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
        return _carry(value, produce, points, list(sent.values()))

    def _backward(self, tensors: list[Tensor], weights: Tensor) -> Sequence[Tensor | None]:
        """Returns the gradient of the weighted sum of this rank's losses."""
        if not tensors:
            return []
        step = self.sought.step
        slopes = weights[step.local].to(step.values.dtype)
        if step.scales is not None:
            slopes = slopes * step.scales.to(slopes)
        return torch.autograd.grad(
            list(step.roots),  # type: ignore[arg-type]
            tensors,
            grad_outputs=[
                start_of(root, slope) for root, slope in zip(step.roots, slopes, strict=True)
            ],
            retain_graph=True,
            allow_unused=True,
        )


class Chunked(Streamed):
    """Gradients of which some entries are held at a time: after the products, one more walk."""

    def __init__(self, sought: Sought, chunk: int) -> None:
        super().__init__(sought)
        n, workspace = len(sought.names), Workspace()
        self._gram = torch.zeros(n, n, dtype=torch.float64)
        for group in _groups(sought.shared, chunk):
            part = Rows(replace(sought, shared=group, own=[], complete=False), workspace)
            self.unused &= part.unused
            self._gram += part.gram()
            del part

    def gram(self) -> Tensor:
        """Returns the inner products; see `TaskGradients`."""
        return self._gram


def _scaled(gradient: Tensor | None, scale: Tensor | None) -> Tensor | None:
    return gradient if gradient is None or scale is None else scale.to(gradient) * gradient


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


def _carry(
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
    """A constant with a gradient; see `_carry`."""

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


def task_gradients(
    step: Step,
    names: list[str],
    shared: Shared | None,
    known: SharedLeaves,
    workspace: Workspace,
    *,
    weighted_heads: bool,
    remembered: bool,
    layers: bool = False,
    chunk: int | None = None,
    read: Collection[int] | None = None,
    streamed: bool = False,
) -> TaskGradients:
    """Returns the gradient of each loss, by one backward pass a task.

    Args:
        step: The losses of the n tasks present.
        names: Their names.
        shared: What the tasks share, parameters or features; by default the leaves of the graph
            that two tasks reach.
        known: The leaves found to be shared so far; those of this step are added.
        workspace: Memory for the rows.
        weighted_heads: Whether every leaf gets the weighted sum of the task gradients. Then the
            leaves below a given layer need no pass of their own: the caller's backward reaches
            them.
        remembered: Whether the place of an entry in the rows is remembered from step to step.
        layers: Whether only their inner products are needed, so that the weights of layers may be
            left out of the rows.
        chunk: The largest number of entries of a task gradient to hold at a time.
        read: Which of the tasks to take the gradient of; by default all.
        streamed: Whether the weights are known already, so that no task needs a pass of its own.

    Raises:
        ValueError: No loss depends on `shared`, or the features given overlap.
        RuntimeError: The graph was freed, or can't be walked a second time.
    """
    sought = seek(step, names, shared, known, weighted_heads=weighted_heads, remembered=remembered)
    gradients: TaskGradients
    if streamed:
        gradients = Streamed(sought)
    elif chunk is not None and not sought.of_features:
        gradients = Chunked(sought, chunk)
    else:
        found: list[Layer] = []
        if not sought.taken and not sought.of_features:
            asked = {id(tensor): tensor for tensor in sought.shared if tensor.requires_grad}
            found = find_layers(sought.graph, asked)
        gradients = Rows(
            sought,
            workspace,
            found,
            read,
            # The products of averages over ranks are no sums over samples.
            only_products=layers and world_size() == 1,
        )
    if shared is not None and gradients.unused and not streamed:
        raise ValueError(
            f"None of the losses of {', '.join(names)} depends on `shared`: give the very "
            "parameters or features that the forward pass used, not a copy, or leave `shared` out."
        )
    return gradients
