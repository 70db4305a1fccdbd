"""Task gradients: taken once for each loss, and sent on by the scalar that is returned.

The only file that calls `torch.autograd.grad` on the network.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from mtlweight.distributed import sum_over_ranks, world_size
from mtlweight.inputs import Root

Shared = Tensor | Iterable[Tensor]


class SharedLeaves:
    """The leaves that two tasks were seen to reach, in the order they were found.

    A leaf stays shared in steps from which some of its tasks are absent, or in which it is frozen,
    and tasks that never meet in a batch share what each of them reaches. Holds no leaf alive, and
    is found anew after a copy or a load, since the leaves are other ones then.

    Args:
        sole_task: Whether there is a single task, which shares everything with itself.
        expected: The shapes of the leaves that were shared when a state was saved.
    """

    def __init__(self, sole_task: bool, expected: list[list[int]] | None = None) -> None:
        self.sole_task = sole_task
        self.expected = expected
        self._seen: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._shared: dict[int, weakref.ref[Tensor]] = {}

    def __iter__(self) -> Iterator[Tensor]:
        return (leaf for ref in self._shared.values() if (leaf := ref()) is not None)

    def __contains__(self, leaf: Tensor) -> bool:
        return id(leaf) in self._shared and self._shared[id(leaf)]() is leaf

    @property
    def shapes(self) -> list[list[int]]:
        """The shapes of the leaves, in order; after a load, those that are expected."""
        return self.expected or [list(leaf.shape) for leaf in self]

    def share(self, leaf: Tensor) -> None:
        """Notes that a leaf is shared, whichever tasks reach it."""
        self.see(leaf, 0b11)

    def check_expected(self, in_order: bool) -> None:
        """Refuses a first step after a load that does not show what was shared before.

        Args:
            in_order: Whether their order matters, to gradients that are remembered.

        Raises:
            ValueError: Other leaves are found to be shared than when the state was saved.
        """
        if not self.expected:
            return
        found, expected = [list(leaf.shape) for leaf in self], self.expected
        if found != expected and (in_order or sorted(found) != sorted(expected)):
            self._seen, self._shared = {}, {}
            raise ValueError(
                "The tasks of this step do not show again what was shared when the state was "
                "saved: begin with a batch of every task, or give `shared=encoder.parameters()` "
                "from the start."
            )
        self.expected = None

    def see(self, leaf: Tensor, tasks: int) -> None:
        """Notes that the tasks, bits of a number, reach a leaf."""
        ref, seen = self._seen.get(id(leaf), (None, 0))
        if ref is None or ref() is not leaf:  # another leaf had this identity, and is gone
            ref, seen = weakref.ref(leaf), 0
            self._shared.pop(id(leaf), None)
        self._seen[id(leaf)] = ref, seen | tasks
        if self.sole_task or (seen | tasks).bit_count() > 1:
            self._shared.setdefault(id(leaf), ref)

    def forget_dead(self) -> None:
        """Forgets the leaves that exist no more."""
        self._seen = {key: entry for key, entry in self._seen.items() if entry[0]() is not None}
        self._shared = {key: ref for key, ref in self._shared.items() if ref() is not None}

    def __reduce__(self) -> tuple[type[SharedLeaves], tuple[bool]]:
        return SharedLeaves, (self.sole_task,)


@dataclass
class TaskGradients:
    """The gradients of the n losses of a step.

    Attributes:
        rows: With respect to what the tasks share, flattened, `[n, P]`, float32 or float64.
        shared: What they share: leaves, or features.
        own: The leaves outside `shared`.
        own_gradients: That of each task with respect to each of `own`; None where unrelated.
        complete: Whether `rows` and `own_gradients` hold all of the network's gradient. If not, the
            leaves below `shared` still wait for a backward of the weighted losses.
    """

    rows: Tensor
    shared: list[Tensor]
    own: list[Tensor]
    own_gradients: list[list[Tensor | None]]
    complete: bool

    @property
    def of_features(self) -> bool:
        """Whether they are with respect to features, of which each rank has its own samples'."""
        return not _all_leaves(self.shared)

    def gram(self) -> Tensor:
        """Returns the inner products of the task gradients over all ranks, `[n, n]`, float64, host.

        Summed in float64 piece by piece: a float32 product of long rows loses digits, and overflows
        for gradients above 1e19. A gradient 1e30 times shorter than the longest counts as none: no
        float32 weight could make up for it.
        """
        wide = torch.float32 if self.rows.device.type == "mps" else torch.float64
        gram = torch.zeros(len(self.rows), len(self.rows), dtype=wide, device=self.rows.device)
        for piece in torch.split(self.rows, 1 << 16, dim=1):
            piece = piece.to(wide)
            gram += piece @ piece.T
        if self.of_features:
            gram = sum_over_ranks(gram) / world_size() ** 2
        gram = gram.double().cpu()
        norms = gram.diagonal().sqrt()
        moves = norms > 1e-30 * norms.max()
        return torch.where(moves[:, None] & moves, gram, 0.0) if gram.isfinite().all() else gram

    def carry(self, value: Tensor, gradient: Tensor, head_weights: Tensor) -> Tensor:
        """Returns a scalar worth `value` whose backward adds the combined gradient to `.grad`.

        Args:
            value: What the scalar is worth, detached.
            gradient: The combined gradient of what is shared, `[P]`.
            head_weights: What multiplies each task's gradient in the leaves outside, `[n]`.
        """
        pieces = torch.split(gradient, [tensor.numel() for tensor in self.shared])
        points, sent = [], []
        for tensor, piece in zip(self.shared, pieces, strict=True):
            if tensor.requires_grad:
                points.append(tensor)
                sent.append(piece.view_as(tensor).to(tensor.dtype))
        for leaf, gradients in zip(self.own, self.own_gradients, strict=True):
            terms = [w * g for w, g in zip(head_weights, gradients, strict=True) if g is not None]
            points.append(leaf)
            sent.append(torch.stack(terms).sum(0).to(leaf.dtype) if len(terms) > 1 else terms[0])
        return _Carry.apply(value, sent, *points)  # type: ignore[no-any-return]


class _Carry(torch.autograd.Function):
    """A constant whose gradient at the given points is the given one."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *points: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        sent = [grad_output.to(g.dtype) * g for g in ctx.gradients]
        return None, None, *sent


def task_gradients(
    roots: Sequence[Root],
    names: Sequence[str],
    scales: Tensor | None,
    shared: Shared | None,
    index: Sequence[int],
    known: SharedLeaves,
    *,
    weighted_heads: bool,
    remembered: bool,
) -> TaskGradients:
    """Returns the gradient of each loss, by one backward pass a task.

    Args:
        roots: The losses of the n tasks present.
        names: Their names.
        scales: What each gradient is multiplied with, `[n]`; None for one.
        shared: What the tasks share, parameters or features; by default the leaves of the graph
            that two tasks reach.
        index: The numbers of the n tasks.
        known: The leaves found to be shared so far; those of this step are added.
        weighted_heads: Whether every leaf gets the weighted sum of the task gradients. Then the
            leaves below a given layer need no pass of their own: the caller's backward reaches
            them.
        remembered: Whether the rows are kept from step to step.

    Raises:
        ValueError: No loss depends on `shared`, or the features given overlap.
        RuntimeError: The graph was freed, or can't be walked a second time.
    """
    given = None if shared is None else _as_list(shared)
    stops = [t for t in given or [] if not t.is_leaf]
    masks = reached_leaves(roots, stops)
    taken: list[dict[int, Tensor]] = [{} for _ in roots]  # by the identity of the leaf
    if given is None:
        if _elements_of_a_vector(roots):
            # In the graph each element depends on every head, so only the gradients can tell.
            for task, root in enumerate(roots):
                _take(taken[task], root, [leaf for leaf, _ in masks], names[task])
            masks = _moved(masks, taken)
        known.forget_dead()
        for leaf, mask in masks:
            known.see(leaf, sum(1 << index[i] for i in range(len(roots)) if mask >> i & 1))
        if len(roots) > 1 or remembered:  # what a sole task shares does not matter to it
            known.check_expected(in_order=remembered)
        points = list(known)
    else:
        # What was trainable once keeps its place, so that memories of gradients still fit.
        for tensor in given:
            if tensor.is_leaf and tensor.requires_grad:
                known.share(tensor)
        known.expected = None
        points = [tensor for tensor in given if tensor.requires_grad or tensor in known]
        if stops:
            _refuse_overlap(stops, masks)
    in_points = {id(tensor) for tensor in points}
    outside = [(leaf, mask) for leaf, mask in masks if id(leaf) not in in_points]
    complete = not (weighted_heads and any(mask.bit_count() > 1 for _, mask in outside))
    if not complete:
        outside = []

    ends = list(accumulate(tensor.numel() for tensor in points))
    like = points[0] if points else next((leaf for leaf, _ in masks), None)
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in points) else torch.float32
    rows = torch.zeros(
        len(roots),
        ends[-1] if ends else 0,
        dtype=dtype,
        device=None if like is None else like.device,
    )
    own_gradients: list[list[Tensor | None]] = [[None] * len(roots) for _ in outside]
    unused = True
    trainable = [tensor for tensor in points if tensor.requires_grad]
    for task, root in enumerate(roots):
        mine = [leaf for leaf, mask in outside if mask >> task & 1]
        if not taken[task]:
            _take(taken[task], root, [*trainable, *mine], names[task])
        for end, tensor in zip(ends, points, strict=True):
            gradient = taken[task].get(id(tensor))
            if gradient is not None:
                unused = False
                rows[task, end - tensor.numel() : end].copy_(gradient.reshape(-1))
        for i, (leaf, mask) in enumerate(outside):
            gradient = taken[task].get(id(leaf)) if mask >> task & 1 else None
            if gradient is not None:
                own_gradients[i][task] = gradient if scales is None else scales[task] * gradient
        taken[task].clear()
    if scales is not None:
        rows *= scales.to(rows)[:, None]
    if given is not None and unused:
        raise ValueError(
            f"None of the losses of {', '.join(names)} depends on `shared`: give the very "
            "parameters or features that the forward pass used, not a copy, or leave `shared` out."
        )
    if world_size() > 1 and _all_leaves(points):
        rows = sum_over_ranks(rows) / world_size()
    kept = [i for i, per_task in enumerate(own_gradients) if any(g is not None for g in per_task)]
    return TaskGradients(
        rows, points, [outside[i][0] for i in kept], [own_gradients[i] for i in kept], complete
    )


def reached_leaves(roots: Sequence[Root], stops: Sequence[Tensor] = ()) -> list[tuple[Tensor, int]]:
    """Returns the leaves of the graph, each with the roots that reach it, as bits of a number.

    Each node is visited once, however many roots reach it. Leaves come in the order in which they
    are met on the way from the roots.
    """
    nodes = [_node(root) for root in roots]
    ends = {_node(stop) for stop in stops}
    postorder: list[Node] = []
    seen: set[Node] = set()
    todo: list[tuple[Node, bool]] = []
    for start in nodes:
        todo.append((start, False))
        while todo:
            node, left = todo.pop()
            if left:
                postorder.append(node)
            elif node not in seen:
                seen.add(node)
                todo.append((node, True))
                if node not in ends:
                    todo += [(n, False) for n, _ in node.next_functions if n is not None]
    masks = dict.fromkeys(postorder, 0)
    for bit, node in enumerate(nodes):
        masks[node] |= 1 << bit
    leaves = []
    for node in reversed(postorder):
        if hasattr(node, "variable"):  # where a leaf accumulates its gradient
            leaves.append((node.variable, masks[node]))
        elif node not in ends:
            for following, _ in node.next_functions:
                if following is not None:
                    masks[following] |= masks[node]
    return leaves


def _node(root: Root) -> Node:
    return get_gradient_edge(root).node if isinstance(root, Tensor) else root.node


def _all_leaves(tensors: Sequence[Tensor]) -> bool:
    return all(tensor.is_leaf for tensor in tensors)


def _as_list(shared: Shared) -> list[Tensor]:
    tensors = [shared] if isinstance(shared, Tensor) else list(shared)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"`shared` holds {type(tensor).__name__}, not tensors: give encoder.parameters(), "
                "or the features that the encoder returned."
            )
    if not any(tensor.requires_grad for tensor in tensors):
        raise ValueError(
            "`shared` holds nothing that takes a gradient: give trainable parameters, or features."
        )
    if len({tensor.is_leaf for tensor in tensors}) > 1:
        raise ValueError("`shared` mixes parameters and features: give one or the other.")
    return tensors


def _refuse_overlap(features: Sequence[Tensor], masks: Sequence[tuple[Tensor, int]]) -> None:
    """Refuses features whose gradients would be counted twice."""
    ends = {_node(feature) for feature in features}
    below: set[Node] = set()
    todo = [n for end in ends for n, _ in end.next_functions if n is not None]
    while todo:
        node = todo.pop()
        if node not in below:
            below.add(node)
            todo += [n for n, _ in node.next_functions if n is not None]
    if ends & below:
        raise ValueError(
            "One of the features in `shared` is computed from another: give only the last ones, or "
            "`shared=encoder.parameters()`."
        )
    trunk = {id(node.variable) for node in below if hasattr(node, "variable")}
    for leaf, _ in masks:
        if id(leaf) in trunk:
            raise ValueError(
                f"A parameter of shape {list(leaf.shape)} is reached both through the features in "
                "`shared` and around them: give `shared=encoder.parameters()` instead."
            )


def _elements_of_a_vector(roots: Sequence[Root]) -> bool:
    """Tells whether the losses came as one tensor that was not stacked from them."""
    nodes = [root.grad_fn for root in roots if isinstance(root, Tensor)]
    return len(nodes) > 1 and nodes[0] is not None and all(node is nodes[0] for node in nodes)


def _moved(
    masks: Sequence[tuple[Tensor, int]], taken: Sequence[dict[int, Tensor]]
) -> list[tuple[Tensor, int]]:
    """Returns the leaves with the tasks that have a gradient other than zero there."""
    flags = torch.stack(
        [
            torch.stack(
                [g[id(leaf)].any() if id(leaf) in g else torch.tensor(False) for g in taken]
            )
            for leaf, _ in masks
        ]
    ).tolist()
    return [
        (leaf, sum(1 << task for task, moves in enumerate(row) if moves))
        for (leaf, _), row in zip(masks, flags, strict=True)
    ]


def _take(taken: dict[int, Tensor], root: Root, inputs: Sequence[Tensor], name: str) -> None:
    """Adds the gradients of a root to what was taken, without those that don't exist."""
    if not inputs:
        return
    start = None if isinstance(root, Tensor) else [torch.ones((), device=inputs[0].device)]
    try:
        gradients = torch.autograd.grad(
            [root],  # type: ignore[arg-type]
            inputs,
            grad_outputs=start,
            retain_graph=True,
            allow_unused=True,
        )
    except RuntimeError as error:
        reason = str(error)
        if "second time" in reason:
            hint = (
                "its graph was freed by an earlier backward. Compute the losses anew for every step"
            )
        elif "donated" in reason:
            hint = (
                "the compiled model gives its buffers away after one backward. Set "
                "torch._functorch.config.donated_buffer = False before compiling"
            )
        else:
            raise
        raise RuntimeError(f"The gradient of task {name!r} can't be taken: {hint}.") from error
    for tensor, gradient in zip(inputs, gradients, strict=True):
        if gradient is not None:
            taken[id(tensor)] = gradient.to_dense() if gradient.is_sparse else gradient
