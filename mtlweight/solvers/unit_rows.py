"""Gram matrices taken apart into lengths and cosines, so that a problem has one scale."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


def unit_rows(gram: Matrix) -> tuple[Vector, Matrix]:
    """Returns the lengths of T vectors `[T]`, and their cosines `[T, T]`, zero for zero vectors.

    Raises:
        ValueError: An inner product is not finite.
    """
    if not np.isfinite(gram).all():
        raise ValueError(f"The inner products of the gradients must be finite, got {gram}.")
    norms = np.sqrt(np.maximum(gram.diagonal(), 0.0))
    lengths = np.where(norms > 0, norms, 1.0)
    cosines: Matrix = (gram / lengths[:, None] / lengths).clip(-1, 1)
    return norms, cosines


def ridged(cosines: Matrix) -> Matrix:
    """Returns the cosines with a ridge of 1e-14 T on the diagonal, `[T, T]`.

    It makes them positive definite where vectors depend on each other: solutions become unique,
    equal vectors get nearly equal weights, and every principal block can be solved with.
    """
    ridged = cosines.copy()
    ridged.flat[:: len(ridged) + 1] += 1e-14 * len(ridged)
    return ridged
