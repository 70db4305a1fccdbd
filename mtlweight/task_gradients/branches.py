"""Where the tasks part above the features that they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from mtlweight.task_gradients.shared_leaves import Graph, node_of


@dataclass(frozen=True)
class Branch:
    """A node that reads features, for one of the tasks.

    Attributes:
        node: The node.
        task: The only task that reaches it.
        places: By position among its inputs, the place of the feature in `shared`.
    """

    node: Node
    task: int
    places: dict[int, int]

    def caught(self, receive: Callable[[int, int, Tensor], None]) -> Callable[..., Any]:
        """Returns a hook that hands over what the node sends to the features, and sends nothing."""

        def hook(sent: tuple[Tensor | None, ...], _: Any) -> tuple[Tensor | None, ...]:
            for position, place in self.places.items():
                if (gradient := sent[position]) is not None:
                    receive(self.task, place, gradient)
            return tuple(None if i in self.places else gradient for i, gradient in enumerate(sent))

        return hook


def find_branches(
    graph: Graph, features: Sequence[Tensor], own: Sequence[tuple[Tensor, int]]
) -> list[Branch] | None:
    """Returns the nodes that read the features, or None where two tasks meet above them."""
    if any(tasks.bit_count() > 1 for _, tasks in own):
        return None
    places = {_edge(feature): place for place, feature in enumerate(features)}
    users = dict.fromkeys(
        user for feature in features for user in graph.users.get(node_of(feature), ())
    )
    if any(graph.reached[user].bit_count() > 1 for user in users):
        return None
    return [
        Branch(
            user,
            graph.reached[user].bit_length() - 1,
            {i: places[edge] for i, edge in enumerate(user.next_functions) if edge in places},
        )
        for user in users
    ]


def _edge(tensor: Tensor) -> tuple[Node, int]:
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr
