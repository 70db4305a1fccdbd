"""Inner products of gradients: the digits they keep, and the range they have."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mtlweight.pieces import PIECE


def widest(tensor: Tensor) -> torch.dtype:
    """Returns the precision in which sums are taken: float64 where the device has it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def rounding_of(dtype: torch.dtype) -> float:
    """Returns how far the cosines of gradients of a precision can be wrong."""
    return 1e-14 if dtype == torch.float64 else 1e-6


def inner_products(rows: Tensor, others: Tensor) -> Tensor:
    """Returns the products of each row with each of the others, `[n, m]`, float64 where there is.

    Short pieces are multiplied in the precision of the rows, and summed in float64: faster than one
    long product, and digits more accurate.
    """
    wide = widest(rows)
    size, piece = rows.shape[1], PIECE
    whole = size // piece * piece
    total = (rows[:, whole:] @ others[:, whole:].T).to(wide)
    if whole:
        left, right = (x[:, :whole].view(len(x), -1, piece).transpose(0, 1) for x in (rows, others))
        total += torch.bmm(left, right.transpose(1, 2)).to(wide).sum(0)
    return total


def exact_products(rows: Tensor, others: Tensor) -> Tensor:
    """Returns the products of each row with each of the others, `[n, m]`, float64, on the host.

    In float64 piece by piece: products of very long or very short gradients are out of float32's
    range, and those of long rows lose digits in it. Where leaves were found to be shared between
    the two, the rows end before them.
    """
    wide = widest(rows)
    total = torch.zeros(len(rows), len(others), dtype=wide, device=rows.device)
    size = min(rows.shape[1], others.shape[1])
    piece = PIECE if rows.is_cpu else 1 << 20
    for start in range(0, size, piece):
        end = min(start + piece, size)
        total += rows[:, start:end].to(wide) @ others[:, start:end].to(wide).T
    return total.cpu().double()


def row_products(rows: Tensor, others: Tensor) -> Tensor:
    """Returns the product of each row `[n, P]` with its counterpart, `[n]`, float64 if there is."""
    wide = widest(rows)
    total = torch.zeros(len(rows), dtype=wide, device=rows.device)
    for a, b in zip(torch.split(rows, 1 << 16, 1), torch.split(others, 1 << 16, 1), strict=True):
        total = total + (a.to(wide) * b.to(wide)).sum(1)
    return total


def squares_fit(squares: Tensor, dtype: torch.dtype) -> bool:
    """Tells whether squared lengths are within the range of a precision that summed them."""
    return dtype == torch.float64 or all(1e-25 < square < 1e30 for square in squares.tolist())


def gram_of(rows: Tensor) -> Tensor:
    """Returns the inner products of rows, `[n, n]`, float64, on the host."""
    gram = inner_products(rows, rows).cpu().double()
    squares = gram.diagonal()
    if not squares_fit(squares, rows.dtype):
        moves = rows.any(1).cpu()
        if not squares_fit(squares[moves], rows.dtype):
            gram = exact_products(rows, rows)
    return gram


def without_rounding(gram: Tensor) -> Tensor:
    """Returns products, on the host, without those of gradients too short for any weight."""
    products = gram.numpy()  # NumPy takes less time over small matrices
    products = (products + products.T) / 2
    squares = products.diagonal()
    if not squares.min() > 1e-60 * squares.max() and np.isfinite(products).all():
        moves = np.sqrt(squares) > 1e-30 * np.sqrt(squares.max())
        products = np.where(moves[:, None] & moves, products, 0.0)
    return torch.from_numpy(products)
