"""Task gradients: taken once for each loss, and sent on by the scalar that is returned."""

from mtlweight.task_gradients.base import Taken, TaskGradients
from mtlweight.task_gradients.parts import Parts
from mtlweight.task_gradients.rows import Rows
from mtlweight.task_gradients.shared_leaves import SharedLeaves
from mtlweight.task_gradients.sought import Shared, Sought, are_features, listed, seek
from mtlweight.task_gradients.streamed import Streamed
from mtlweight.task_gradients.take import products_of, rows_of
from mtlweight.task_gradients.workspace import Workspace

__all__ = [
    "Parts",
    "Rows",
    "Shared",
    "SharedLeaves",
    "Sought",
    "Streamed",
    "Taken",
    "TaskGradients",
    "Workspace",
    "are_features",
    "listed",
    "products_of",
    "rows_of",
    "seek",
]
