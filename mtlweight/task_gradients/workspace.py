"""Memory for task gradients, used again from step to step."""

from __future__ import annotations

import torch
from torch import Tensor


class Workspace:
    """The memory for T gradients, used again as soon as nothing refers to it any more.

    Three pieces at most are kept: a memory of gradients and the next, and the rows of a step.
    """

    def __init__(self) -> None:
        self._pieces: list[Tensor] = []

    def borrow(self, n: int, size: int, like: Tensor) -> Tensor:
        """Returns memory `[n, size]` with the precision and device of a tensor, not set to zero."""
        for piece in self._pieces:
            if piece.shape == (n * size,) and _matches(piece, like) and _is_free(piece):
                return piece.view(n, size)
        # Pieces of another size go before the new one comes, or chunks would hold two at a time.
        self._pieces = [p for p in self._pieces if not _is_free(p)][:2]
        piece = like.new_empty(n * size)
        self._pieces.append(piece)
        return piece.view(n, size)

    def __reduce__(self) -> tuple[type[Workspace], tuple[()]]:
        return Workspace, ()


def _matches(piece: Tensor, like: Tensor) -> bool:
    return piece.dtype == like.dtype and piece.device == like.device


def _is_free(piece: Tensor) -> bool:
    """Tells whether no other tensor, in Python or in a graph, has the same memory."""
    storage = piece.untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata) <= 2  # the piece and this handle
