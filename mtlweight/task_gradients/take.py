"""Which way the gradients of a step are taken."""

from __future__ import annotations

from collections.abc import Collection

from mtlweight.distributed import world_size
from mtlweight.task_gradients.base import TaskGradients
from mtlweight.task_gradients.layers import Layer, find_layers
from mtlweight.task_gradients.linear_heads import HeadProducts, linear_heads
from mtlweight.task_gradients.rows import Rows
from mtlweight.task_gradients.sought import Sought
from mtlweight.task_gradients.streamed import Chunked, Streamed
from mtlweight.task_gradients.workspace import Workspace


def task_gradients(
    sought: Sought,
    workspace: Workspace,
    *,
    layers: bool = False,
    chunk: int | None = None,
    read: Collection[int] | None = None,
    streamed: bool = False,
) -> TaskGradients:
    """Returns the gradient of each loss, or what tells as much.

    Args:
        sought: What the gradients are taken of.
        workspace: Memory for the rows.
        layers: Whether only their inner products are needed, so that the weights of layers may be
            left out of the rows.
        chunk: The largest number of entries of a task gradient to hold at a time.
        read: Which of the tasks to take the gradient of; by default all.
        streamed: Whether the weights are known already, so that no task needs a pass of its own.

    Raises:
        RuntimeError: The graph was freed, or can't be walked a second time.
    """
    if streamed:
        return Streamed(sought)
    if layers and (heads := linear_heads(sought)):
        return HeadProducts(sought, heads)
    if chunk is not None and not sought.of_features:
        return Chunked(sought, chunk)
    found: list[Layer] = []
    if not sought.taken and not sought.of_features:
        asked = {id(tensor): tensor for tensor in sought.shared if tensor.requires_grad}
        found = find_layers(sought.graph, asked)
    # The products of averages over ranks are no sums over samples.
    only_products = layers and world_size() == 1
    return Rows(sought, workspace, found, read, only_products=only_products)
