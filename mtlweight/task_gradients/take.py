"""Which way the gradients of a step are taken."""

from __future__ import annotations

from collections.abc import Collection

from mtlweight.distributed import world_size
from mtlweight.inputs import Step
from mtlweight.task_gradients.base import TaskGradients
from mtlweight.task_gradients.layers import Layer, find_layers
from mtlweight.task_gradients.linear_heads import HeadProducts, linear_heads
from mtlweight.task_gradients.rows import Rows
from mtlweight.task_gradients.shared_leaves import SharedLeaves
from mtlweight.task_gradients.sought import Shared, seek
from mtlweight.task_gradients.streamed import Chunked, Streamed
from mtlweight.task_gradients.workspace import Workspace


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
    elif layers and (heads := linear_heads(sought)):
        gradients = HeadProducts(sought, heads)
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
