"""Passes over gradients in pieces that the cache of a processor holds."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

PIECE = 4096
"""The length of the shortest pieces: over so many numbers, float32 sums keep their digits."""


def in_pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yields tensors `[n, P]` or `[P]` in pieces of some columns."""
    rows = max(len(tensor) if tensor.ndim == 2 else 1 for tensor in tensors)
    numbers = 1 << 18 if tensors[0].is_cpu else 1 << 24
    columns = max(1, numbers // rows // PIECE) * PIECE
    return zip(*(torch.split(tensor, columns, dim=-1) for tensor in tensors), strict=True)


def sizes_of(rows: Tensor) -> Tensor:
    """Returns the sum of the absolute values of each row `[n, P]`, `[n]`."""
    return torch.stack([piece.abs().sum(1) for (piece,) in in_pieces(rows)]).sum(0)


def sample_of(rows: Tensor) -> Tensor:
    """Returns some columns of rows `[n, P]`, or of one `[P]`: all, or about 2^15.

    They come in short runs, evenly spread: a column here and there would fetch all memory.
    """
    run, runs = 64, 1 << 9
    step = rows.shape[-1] // (run * runs)
    if step < 2:
        return rows
    spread = rows[..., : run * runs * step].reshape(*rows.shape[:-1], runs, -1)
    return spread[..., :run].flatten(-2)
