"""One backward pass, with the hooks of tensors where they belong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from mtlweight.inputs import Root


def backward_pass(
    roots: Sequence[Root], starts: Sequence[Tensor], at: Sequence[Tensor | GradientEdge]
) -> list[Tensor | None]:
    """Returns the gradients of summed roots at some places, None where they depend on none of them.

    Hooks of tensors within the network fire, those of the tensors asked for rest.

    Args:
        roots: What gradients are taken of.
        starts: The gradient at each root.
        at: Tensors, or edges of the graph.
    """
    # Where it goes on below an edge, autograd takes the gradient there before the tensor's hooks.
    arrived: dict[int, Tensor | None] = {}
    handles = [
        x.node.register_prehook(_note(arrived, place, x.output_nr))
        for place, x in enumerate(at)
        if isinstance(x, GradientEdge)
    ]
    try:
        with hooks_at_rest(at):
            found = list(
                torch.autograd.grad(
                    list(roots),  # type: ignore[arg-type]
                    list(at),  # type: ignore[arg-type]
                    grad_outputs=list(starts),
                    retain_graph=True,
                    allow_unused=True,
                )
            )
    finally:
        for handle in handles:
            handle.remove()
    return [arrived.get(place, gradient) for place, gradient in enumerate(found)]


@contextmanager
def hooks_at_rest(places: Iterable[Tensor | GradientEdge]) -> Iterator[None]:
    """Within, hooks of these tensors do not fire.

    What is made of gradients there passes there once more, in the backward of the caller.
    """
    hooks = [x._backward_hooks for x in places if isinstance(x, Tensor) and x._backward_hooks]
    resting = [dict(mapping) for mapping in hooks]
    for mapping in hooks:
        mapping.clear()
    try:
        yield
    finally:
        for mapping, rested in zip(hooks, resting, strict=True):
            mapping.update(rested)


def _note(arrived: dict[int, Tensor | None], place: int, number: int) -> Callable[..., None]:
    def hook(gradients: Sequence[Any]) -> None:
        arrived[place] = gradients[number]

    return hook
