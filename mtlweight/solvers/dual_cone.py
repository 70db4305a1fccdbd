"""Projection on the cone of the directions that hurt no task."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlweight.solvers.active_set import minimize
from mtlweight.solvers.unit_rows import Matrix, Vector, ridged, unit_rows


def dual_cone_weights(gram: Tensor, weights: Tensor) -> Tensor:
    r"""Returns the weights v of weighted sums of T vectors projected on their dual cone.

    The point nearest to $J^\top u$ among the directions d with $J d \ge 0$ is $J^\top v$ with

    $$v = \arg\min_{v \ge u} v^\top G v$$

    by an active set method in unit vectors, so that lengths don't matter. The cone is kept to
    $\langle g_i, J^\top v \rangle \ge -10^{-10}\, \lVert g_i \rVert \sum_j v_j \lVert g_j \rVert$.

    Args:
        gram: The inner products G of the vectors, `[T, T]`, float64, positive semi-definite.
        weights: One u or more, none negative, `[T]` or `[m, T]`, float64.

    Raises:
        RuntimeError: The solution was not reached.

    Source: Lawson & Hanson, *Solving least squares problems*, 1974, chapter 23, with more than one
    vector let in at once (ours).
    """
    norms, cosines = unit_rows(gram.numpy())
    lengths = np.where(norms > 0, norms, 1.0)
    definite = ridged(cosines)
    rows = weights.reshape(-1, len(norms)).numpy().copy()
    for u in rows:
        top = float((u * norms).max())
        if top > 0:
            u += _correction(definite, cosines @ (u * norms / top)) * top / lengths
    return torch.from_numpy(rows).view_as(weights)


def _correction(cosines: Matrix, products: Vector) -> Vector:
    """Returns the x >= 0 of the unit vectors to add to a point with the given products, `[T]`."""
    nothing = np.zeros_like(products)
    if products.min() >= 0:
        return nothing

    def slopes(x: Vector) -> tuple[Vector, float]:
        return cosines @ x + products, x.sum() + 1.0

    def goal(index: NDArray[np.intp]) -> Vector:
        point = np.linalg.solve(cosines[index[:, None], index], -products[index])
        return point.astype(np.float64, copy=False)

    return minimize(nothing, slopes, goal, "The projection on the dual cone")
