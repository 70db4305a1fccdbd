"""Passes over gradients in pieces that the cache of a processor holds."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def in_pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yields tensors `[n, P]` or `[P]` in pieces of some columns."""
    rows = max(len(tensor) if tensor.ndim == 2 else 1 for tensor in tensors)
    numbers = 1 << 18 if tensors[0].is_cpu else 1 << 24
    columns = max(1, numbers // rows)
    return zip(*(torch.split(tensor, columns, dim=-1) for tensor in tensors), strict=True)


def sizes_of(rows: Tensor) -> Tensor:
    """Returns the sum of the absolute values of each row `[n, P]`, `[n]`."""
    return torch.stack([piece.abs().sum(1) for (piece,) in in_pieces(rows)]).sum(0)
