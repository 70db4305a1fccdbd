"""What the tasks share: the leaves of the graph that two of them reach."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from mtlweight.inputs import Root


class SharedLeaves:
    """The leaves that two tasks were seen to reach, in the order they were found.

    A leaf stays shared in steps from which some of its tasks are absent, or in which it is frozen,
    and tasks that never meet in a batch share what each of them reaches. Holds no leaf alive, and
    is found anew after a copy or a load, since the leaves are other ones then.

    Args:
        sole_task: Whether there is a single task, which shares everything with itself.
        expected: The shapes of the leaves that were shared when a state was saved or copied.
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

    def copy(self) -> SharedLeaves:
        """Returns the same in a new object, which may change alone."""
        copy = SharedLeaves(self.sole_task, self.expected)
        copy._seen, copy._shared = dict(self._seen), dict(self._shared)
        return copy

    def __reduce__(self) -> tuple[type[SharedLeaves], tuple[bool, list[list[int]]]]:
        return SharedLeaves, (self.sole_task, self.shapes)


@dataclass(frozen=True)
class Graph:
    """What lies between the losses of a step and the leaves of the network.

    Attributes:
        leaves: The leaves, each with the losses that reach it, as bits of a number, in the order in
            which they are met on the way from the losses.
        users: By node, the nodes that read what it stands for.
        accumulators: The node of each leaf, by the leaf's identity.
        reached: By node, the losses that reach it, as bits of a number.
    """

    leaves: list[tuple[Tensor, int]]
    users: dict[Node, list[Node]]
    accumulators: dict[int, Node]
    reached: dict[Node, int]

    def reaches(self, tensor: Tensor) -> bool:
        """Tells whether a loss depends on a leaf, or on a feature where the walk was to stop."""
        if tensor.is_leaf:
            return id(tensor) in self.accumulators
        return node_of(tensor) in self.reached


def walk(roots: Sequence[Root], stops: Sequence[Tensor] = ()) -> Graph:
    """Returns the graph above the leaves, or above features where the walk is to stop.

    Each node is visited once, however many losses reach it.
    """
    nodes = [node_of(root) for root in roots]
    ends = {node_of(stop) for stop in stops}
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
    leaves: list[tuple[Tensor, int]] = []
    users: dict[Node, list[Node]] = {}
    accumulators: dict[int, Node] = {}
    for node in reversed(postorder):
        if hasattr(node, "variable"):  # where a leaf accumulates its gradient
            leaves.append((node.variable, masks[node]))
            accumulators[id(node.variable)] = node
        elif node not in ends:
            for following, _ in node.next_functions:
                if following is not None:
                    masks[following] |= masks[node]
                    users.setdefault(following, []).append(node)
    return Graph(leaves, users, accumulators, masks)


def node_of(root: Root) -> Node:
    """Returns the node that computed a loss or a feature."""
    return get_gradient_edge(root).node if isinstance(root, Tensor) else root.node
