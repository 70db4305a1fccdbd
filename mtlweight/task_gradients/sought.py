"""What the gradients of a step are taken of: given, or found in the graph of the losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from mtlweight.distributed import sum_over_ranks
from mtlweight.inputs import Root, Step
from mtlweight.task_gradients.branches import Branch, find_branches
from mtlweight.task_gradients.passes import backward_pass
from mtlweight.task_gradients.shared_leaves import Graph, SharedLeaves, node_of, walk

Shared = Tensor | Iterable[Tensor]
"""What the tasks share: parameters, or features that the network returned."""


@dataclass
class Sought:
    """What the gradients of a step are taken of.

    Attributes:
        step: The losses.
        names: The names of the n tasks.
        shared: What they share: leaves, or features.
        own: The leaves outside, each with the tasks that reach it, as bits of a number.
        complete: Whether `shared` and `own` are all that the losses depend on. If not, the leaves
            below `shared` still wait for a backward of the weighted losses.
        graph: The graph of the losses.
        taken: Gradients that had to be taken already, by task and identity of the leaf.
        branches: Where the tasks part, if what lies above is each one's own: then one pass through
            all of it tells their gradients apart.
    """

    step: Step
    names: list[str]
    shared: list[Tensor]
    own: list[tuple[Tensor, int]]
    complete: bool
    graph: Graph
    taken: list[dict[int, Tensor]] = field(default_factory=list)
    branches: list[Branch] | None = None

    @property
    def of_features(self) -> bool:
        """Whether they are with respect to features, of which each rank has its own samples'."""
        return not _all_leaves(self.shared)

    @property
    def like(self) -> Tensor:
        """A tensor with the precision and device of the gradients: float32 or float64."""
        dtype = (
            torch.float64 if any(t.dtype == torch.float64 for t in self.shared) else torch.float32
        )
        places = self.shared or [leaf for leaf, _ in self.own]
        return torch.empty(0, dtype=dtype, device=places[0].device if places else None)

    def of_task(
        self, task: int, leaves: Sequence[Tensor], edges: Sequence[GradientEdge] = ()
    ) -> tuple[dict[int, Tensor], list[Tensor | None]]:
        """Returns the gradient of a task by identity of the leaf, and those at the edges."""
        if self.taken:
            return self.taken[task], [None] * len(edges)
        return self._taken([task], leaves, edges)

    def of_branches(self, receive: Callable[[int, int, Tensor], None]) -> dict[int, Tensor]:
        """Takes the gradients of all tasks at once; returns those outside of what is shared.

        Args:
            receive: What to do with a part of the gradient with respect to what is shared, given
                the task, the place in `shared`, and the part.

        Returns:
            The gradients by identity of the leaf, each of which only one task reaches.
        """
        assert self.branches is not None
        hooks = [branch.node.register_hook(branch.caught(receive)) for branch in self.branches]
        try:
            shared = [tensor for tensor in self.shared if tensor.requires_grad]
            return self.of_all(shared)[0]
        finally:
            for hook in hooks:
                hook.remove()

    def of_all(
        self, at: Sequence[Tensor | GradientEdge]
    ) -> tuple[dict[int, Tensor], list[Tensor | None]]:
        """Returns the gradients of the summed losses outside of what is shared, and at places.

        The former by identity of the leaf.
        """
        return self._taken(range(len(self.names)), [leaf for leaf, _ in self.own], at)

    def _taken(
        self, tasks: Sequence[int], leaves: Sequence[Tensor], at: Sequence[Tensor | GradientEdge]
    ) -> tuple[dict[int, Tensor], list[Tensor | None]]:
        """Returns the gradients of summed losses by identity of the leaf, and those at places."""
        trained = [leaf for leaf in leaves if leaf.requires_grad]
        found = self._gradients(tasks, [*at, *trained])
        by_leaf = zip(trained, found[len(at) :], strict=True)
        return {id(leaf): g for leaf, g in by_leaf if g is not None}, found[: len(at)]

    def _gradients(
        self, tasks: Sequence[int], inputs: Sequence[Tensor | GradientEdge]
    ) -> list[Tensor | None]:
        """Returns the gradients of the summed losses of some tasks, None where none depends."""
        if not inputs:
            return []
        roots = [self.step.roots[task] for task in tasks]
        start = self.step.values.detach().new_ones(())
        try:
            found = backward_pass(roots, [start_of(root, start) for root in roots], inputs)
        except RuntimeError as error:
            hint = _hint(str(error))
            if hint is None:
                raise
            names = ", ".join(repr(self.names[task]) for task in tasks)
            raise RuntimeError(f"The gradient of task {names} can't be taken: {hint}.") from error
        return [g.to_dense() if g is not None and g.is_sparse else g for g in found]

    def own_of(self, task: int) -> list[Tensor]:
        """Returns the leaves outside of what is shared that a task reaches."""
        return [leaf for leaf, tasks in self.own if tasks >> task & 1]


def seek(
    step: Step,
    names: list[str],
    shared: Shared | None,
    known: SharedLeaves,
    *,
    weighted_heads: bool,
    remembered: bool,
) -> Sought:
    """Returns what the gradients of a step are to be taken of.

    Args:
        step: The losses of the n tasks present.
        names: Their names.
        shared: What the tasks share, parameters or features; by default the leaves of the graph
            that two tasks reach.
        known: The leaves found to be shared so far; those of this step are added.
        weighted_heads: Whether every leaf gets the weighted sum of the task gradients. Then the
            leaves below a given layer need no pass of their own: the caller's backward reaches
            them.
        remembered: Whether the place of an entry in the rows is remembered from step to step.

    Raises:
        ValueError: No loss depends on what was given as shared, the features given overlap, or
            other leaves are shared than a saved state has.
        RuntimeError: The graph was freed, or can't be walked a second time.
    """
    roots, index = step.roots, step.index
    given = listed(shared)
    stops = [t for t in given or [] if not t.is_leaf]
    graph = walk(roots, stops)
    masks = graph.leaves
    taken: list[dict[int, Tensor]] = []  # by the identity of the leaf
    if given is None:
        if _elements_of_a_vector(roots):
            # In the graph each element depends on every head, so only the gradients can tell.
            leaves = [leaf for leaf, _ in masks]
            first = Sought(step, names, leaves, [], False, graph)
            taken = [first.of_task(task, leaves)[0] for task in range(len(roots))]
            masks = _moved(masks, taken)
        known.forget_dead()
        for leaf, mask in masks:
            known.see(leaf, sum(1 << index[i] for i in range(len(roots)) if mask >> i & 1))
        known.check_expected(in_order=remembered)
        points = list(known)
    else:
        if not any(tensor.requires_grad and graph.reaches(tensor) for tensor in given):
            raise ValueError(
                f"None of the losses of {', '.join(names)} depends on `shared`: give the very "
                "parameters or features that the forward pass used, not a copy, or leave `shared` "
                "out."
            )
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
    own = outside if complete else []
    sought = Sought(step, names, points, own, complete, graph, taken)
    if sought.of_features:
        sought.branches = find_branches(graph, points, sought.own)
    return sought


def _all_leaves(tensors: Sequence[Tensor]) -> bool:
    return all(tensor.is_leaf for tensor in tensors)


def listed(shared: Shared | None) -> list[Tensor] | None:
    """Returns what was given as shared in a list: parameters, or else features.

    Raises:
        TypeError: Something is no tensor.
        ValueError: Nothing takes a gradient, or parameters and features are mixed.
    """
    if shared is None:
        return None
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


def are_features(given: list[Tensor] | None) -> bool:
    """Tells whether what was given as shared are features."""
    return given is not None and not given[0].is_leaf


def _refuse_overlap(features: Sequence[Tensor], masks: Sequence[tuple[Tensor, int]]) -> None:
    """Refuses features whose gradients would be counted twice."""
    ends = {node_of(feature) for feature in features}
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
    """Returns the leaves with the tasks that have a gradient other than zero there, on any rank."""

    def moves(leaf: Tensor, gradients: dict[int, Tensor]) -> Tensor:
        gradient = gradients.get(id(leaf), leaf.new_zeros(()))
        return gradient.any().float()

    flags = torch.stack([torch.stack([moves(leaf, g) for g in taken]) for leaf, _ in masks])
    rows = sum_over_ranks(flags).tolist()
    return [
        (leaf, sum(1 << task for task, count in enumerate(row) if count))
        for (leaf, _), row in zip(masks, rows, strict=True)
    ]


def start_of(root: Root, slope: Tensor) -> Tensor:
    """Returns the number at which the backward pass of a loss starts."""
    if isinstance(root, Tensor):
        return slope.to(root.dtype).expand(root.shape)
    return slope


def _hint(reason: str) -> str | None:
    """Returns what to do about an error of autograd, if it is one of the known."""
    if "second time" in reason:
        return "its graph was freed by an earlier backward. Compute the losses anew for every step"
    if "donated" in reason:
        return (
            "the compiled model gives its buffers away after one backward. Set "
            "torch._functorch.config.donated_buffer = False before compiling"
        )
    return None
