"""The shortest vector of a hull, and the one that is shortest together with a direction."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlweight.solvers.active_set import level, minimize
from mtlweight.solvers.unit_rows import Matrix, Vector, ridged, unit_rows


def min_norm_point(gram: Tensor) -> Tensor:
    r"""Returns the weights of the shortest vector d in the convex hull of T vectors, `[T]`.

    $$\arg\min_{w \ge 0,\ \sum_i w_i = 1} w^\top G w$$

    by an active set method in unit vectors, with $x_i \propto \lVert g_i \rVert w_i$, so that
    vectors many decades apart in length are told apart as well as equal ones. At the solution
    $\langle g_i, d \rangle \ge \lVert d \rVert^2$, equal where $w_i > 0$: reached to 1e-10 of
    $\lVert g_i \rVert \sum_j w_j \lVert g_j \rVert$. Equal vectors get equal weights, to 2 %.

    Args:
        gram: Their inner products G, `[T, T]`, float64, positive semi-definite.

    Raises:
        RuntimeError: The solution was not reached.

    Source: Wolfe, *Finding the nearest point in a polytope*, Mathematical Programming 1976, with
    more than one vector let in at once (ours).
    """
    norms, cosines = unit_rows(gram.numpy())
    still = norms == 0
    if still.any():  # the origin is in the hull
        return torch.from_numpy(still / still.sum())
    prices = norms.min() / norms  # what a unit of x_i takes of the weights: their sum is one
    cosines = ridged(cosines)

    def slopes(x: Vector) -> tuple[Vector, float]:
        y = cosines @ x
        return y - prices * level(x, y, prices), x.sum()

    def goal(index: NDArray[np.intp]) -> Vector:
        p = prices[index]
        point: Vector = np.linalg.solve(cosines[index[:, None], index], p)
        return point / float(p @ point)

    start = np.zeros_like(norms)
    start[norms.argmin()] = 1.0
    w = prices * minimize(start, slopes, goal, "The shortest vector of the hull")
    return torch.from_numpy(w / w.sum())


def directed_min_norm_point(products: Tensor, strength: float) -> Tensor:
    r"""Returns the weights whose vector is shortest together with the mean of the vectors, `[T]`.

    $$\arg\min_{w \ge 0,\ \sum_i w_i = 1} \tfrac12 v^\top S v, \qquad v = w + \tfrac{\lambda}{T}$$

    with $S = (A + A^\top)/2$. For $A = J J^\top$ this is the shortest $J^\top v$. For
    $A = J_1 J_2^\top$ of two batches, which estimates it without bias, S may have negative
    eigenvalues, and the lowest point may then be any vertex: they are set to zero, which leaves the
    nearest S that is positive semi-definite. At the solution $(S v)_i$ is the same where
    $w_i > 0$, and not smaller elsewhere: reached to 1e-10 of $n_i \sum_j v_j n_j$ with
    $n_i = \sqrt{S_{ii}}$.

    Args:
        products: A, `[T, T]`, float64.
        strength: $\lambda$, not negative.

    Raises:
        RuntimeError: The solution was not reached.

    Source: the problem of Xiao, Ban & Ji, *Direction-oriented multi-objective learning*, NeurIPS
    2023, equation 7, solved exactly (ours).
    """
    norms, cosines = _convex_part(products.numpy())
    # The mean is known to sixteen digits: beside it, shorter vectors than that are zero.
    moves = norms > 1e-14 * strength * norms.max()
    cosines = np.where(moves[:, None] & moves, cosines, 0.0)
    tasks = len(norms)
    if not moves.any():
        return torch.full((tasks,), 1 / tasks, dtype=torch.float64)
    lengths = norms / norms[moves].min() * moves
    prices = 1 / np.where(moves, lengths, 1.0)
    pull = (strength / tasks) * (cosines @ lengths)
    scale = (strength / tasks) * lengths.sum()
    if not moves.all() and pull.min() >= 0:  # nothing is shorter along the mean than zero
        return torch.from_numpy(~moves / (~moves).sum())
    cosines = ridged(cosines)

    def slopes(x: Vector) -> tuple[Vector, float]:
        y = cosines @ x + pull
        return y - prices * level(x, y, prices), x.sum() + scale

    def goal(index: NDArray[np.intp]) -> Vector:
        p = prices[index]
        system = np.zeros((len(p) + 1, len(p) + 1))
        system[:-1, :-1] = cosines[index[:, None], index]
        system[-1, :-1] = system[:-1, -1] = p
        point: Vector = np.linalg.solve(system, np.append(-pull[index], 1.0))[:-1]
        return point

    start = np.zeros_like(norms)
    vertex = ((0.5 / prices + pull) / prices).argmin()
    start[vertex] = 1 / prices[vertex]
    w = prices * minimize(start, slopes, goal, "The shortest vector along the mean")
    return torch.from_numpy(w / w.sum())


def _convex_part(products: Matrix) -> tuple[Vector, Matrix]:
    """Returns the lengths and cosines of vectors whose inner products are nearest to these."""
    symmetric: Matrix = (products + products.T) / 2
    norms, cosines = unit_rows(symmetric)
    bound = norms[:, None] * norms * (1 + 1e-9)
    if (np.abs(symmetric) <= bound).all() and np.linalg.eigvalsh(cosines)[0] >= -1e-12:
        return norms, cosines
    scale = np.abs(symmetric).max()
    values, vectors = np.linalg.eigh(symmetric / scale)
    rows = vectors * np.sqrt(np.maximum(values, 0.0) * scale)
    norms = np.linalg.norm(rows, axis=1)
    rows /= np.where(norms > 0, norms, 1.0)[:, None]
    return norms, rows @ rows.T
