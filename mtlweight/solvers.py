"""The T x T problems inside strategies: float64 on the host, exact, and free of scale."""

from __future__ import annotations

import torch
from torch import Tensor


def min_norm_point(gram: Tensor) -> Tensor:
    r"""Returns the weights of the shortest vector in the convex hull of T vectors, `[T]`.

    $$\arg\min_{w \ge 0,\ \sum_i w_i = 1} w^\top G w$$

    by Wolfe's active set method: finite and exact, also for vectors that repeat or oppose each
    other. It is run on unit vectors, with $x_i \propto \lVert g_i \rVert w_i$, so that vectors
    many decades apart in length are told apart as well as equal ones.

    Args:
        gram: Their inner products G, `[T, T]`, float64, positive semi-definite.

    Raises:
        RuntimeError: The method did not end, which it does for every Gram matrix.

    Source: Wolfe, *Finding the nearest point in a polytope*, Mathematical Programming 1976.
    """
    norms = gram.diagonal().clamp_min(0).sqrt()
    still = norms == 0
    if still.any():  # the origin is in the hull
        return still.to(gram) / still.sum()
    cosines = (gram / norms[:, None] / norms).clamp(-1, 1)
    prices = norms.min() / norms  # what a unit of x_i takes of the weights: their sum is one
    start = int(norms.argmin())
    active = [start]
    x = torch.zeros_like(norms)
    x[start] = 1.0
    for _ in range(1000):
        slopes = cosines @ x
        square = x @ slopes
        gaps = slopes - prices * square
        gaps[active] = torch.inf
        best = int(gaps.argmin())
        if gaps[best] >= -1e-12 * x.sum() or square <= 1e-26:
            w = prices * x
            return w / w.sum()
        active.append(best)
        while True:
            goal = _affine_min_norm_point(cosines[active][:, active], prices[active])
            here = x[active]
            leaving = goal <= 0
            if leaving.any():
                step = (here[leaving] / (here[leaving] - goal[leaving])).min()
                goal = here + step * (goal - here)
                goal[leaving & (goal <= 1e-14 * goal.max())] = 0.0
            x = torch.zeros_like(x)
            x[active] = goal
            if not leaving.any():
                break
            active = [i for i in active if x[i] > 0]
            x = x / (prices @ x)
    raise RuntimeError(f"The shortest vector in the hull of {len(gram)} gradients was not found.")


def _affine_min_norm_point(gram: Tensor, prices: Tensor) -> Tensor:
    """Returns the x of any sign, with x @ prices = 1, of the shortest vector, `[n]`."""
    n = len(gram)
    system = torch.zeros(n + 1, n + 1, dtype=gram.dtype)
    system[:n, :n] = gram
    system[n, :n] = system[:n, n] = prices
    right = torch.zeros(n + 1, dtype=gram.dtype)
    right[n] = 1.0
    solution: Tensor = torch.linalg.pinv(system, hermitian=True) @ right
    return solution[:n]
