"""The T x T problems inside strategies: float64 on the host, exact, and free of scale."""

from __future__ import annotations

import torch
from torch import Tensor


def min_norm_point(gram: Tensor) -> Tensor:
    r"""Returns the weights of the shortest vector in the convex hull of T vectors, `[T]`.

    $$\operatorname*{arg\,min}_{w \ge 0,\ \sum_i w_i = 1} w^\top G w$$

    by Wolfe's active set method: finite and exact, also for vectors that repeat or oppose each
    other.

    Args:
        gram: Their inner products G, `[T, T]`, float64, positive semi-definite.

    Source: Wolfe, *Finding the nearest point in a polytope*, Mathematical Programming 1976.
    """
    size = gram.diagonal().mean()
    if size == 0:  # nothing moves, so any weights do
        return torch.full_like(gram[0], 1 / len(gram))
    gram = gram / size
    tolerance = 1e-12 * float(gram.diagonal().max())
    start = int(gram.diagonal().argmin())
    active = [start]
    w = torch.zeros_like(gram[0])
    w[start] = 1.0
    for _ in range(1000):
        slopes = gram @ w
        best = int(slopes.argmin())
        if slopes[best] >= w @ slopes - tolerance or best in active:
            return w / w.sum()
        active.append(best)
        while True:
            goal = _affine_min_norm_point(gram[active][:, active])
            if (goal > 0).all():
                w = torch.zeros_like(w)
                w[active] = goal
                break
            here = w[active]
            leaving = goal <= 0
            step = (here[leaving] / (here[leaving] - goal[leaving])).min()
            moved = here + step * (goal - here)
            keep = [i for i in range(len(active)) if moved[i] > 1e-14]
            w = torch.zeros_like(w)
            active = [active[i] for i in keep]
            w[active] = moved[keep]
            w = w / w.sum()
    raise RuntimeError(f"The shortest vector in the hull of {len(gram)} gradients was not found.")


def _affine_min_norm_point(gram: Tensor) -> Tensor:
    """Returns the weights, of any sign, of the shortest vector in the affine hull, `[n]`."""
    n = len(gram)
    system = torch.ones(n + 1, n + 1, dtype=gram.dtype)
    system[:n, :n] = gram
    system[n, n] = 0.0
    right = torch.zeros(n + 1, dtype=gram.dtype)
    right[n] = 1.0
    solution: Tensor = torch.linalg.pinv(system, hermitian=True) @ right
    return solution[:n]
