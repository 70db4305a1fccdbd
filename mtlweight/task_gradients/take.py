"""Which way the gradients of a step are taken."""

from __future__ import annotations

from collections.abc import Collection

from mtlweight.distributed import world_size
from mtlweight.task_gradients.base import TaskGradients
from mtlweight.task_gradients.layers import Layer, find_layers
from mtlweight.task_gradients.linear_heads import HeadProducts, linear_heads
from mtlweight.task_gradients.rows import Rows
from mtlweight.task_gradients.sought import Sought
from mtlweight.task_gradients.streamed import Chunked
from mtlweight.task_gradients.workspace import Workspace


def rows_of(sought: Sought, workspace: Workspace, read: Collection[int] | None = None) -> Rows:
    """Returns the gradients themselves.

    Args:
        sought: What the gradients are taken of.
        workspace: Memory for them.
        read: Which of the tasks to take the gradient of; by default all.

    Raises:
        RuntimeError: The graph was freed, or can't be walked a second time.
    """
    return Rows(sought, workspace, _layers(sought), read)


def products_of(sought: Sought, workspace: Workspace, chunk: int | None = None) -> TaskGradients:
    """Returns what tells the inner products of the gradients and spends them.

    Args:
        sought: What the gradients are taken of.
        workspace: Memory for what is written out.
        chunk: The largest number of entries of a gradient of parameters to hold at a time.

    Raises:
        RuntimeError: The graph was freed, or can't be walked a second time.
    """
    if heads := linear_heads(sought):
        return HeadProducts(sought, heads)
    if chunk is not None and not sought.of_features:
        return Chunked(sought, chunk)
    # The products of averages over ranks are no sums over samples.
    return Rows(sought, workspace, _layers(sought), only_products=world_size() == 1)


def _layers(sought: Sought) -> list[Layer]:
    if sought.taken or sought.of_features:
        return []
    asked = {id(tensor): tensor for tensor in sought.shared if tensor.requires_grad}
    return find_layers(sought.graph, asked)
