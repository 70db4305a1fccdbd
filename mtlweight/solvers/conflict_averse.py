"""The direction near the mean gradient that serves the worst-off task best."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlweight.solvers.active_set import level, minimize
from mtlweight.solvers.dual_cone import dual_cone_weights
from mtlweight.solvers.unit_rows import Vector, ridged, unit_rows


def conflict_averse_weights(gram: Tensor, c: float) -> Tensor:
    r"""Returns the weights of the direction, near the mean of T vectors, best for the worst, `[T]`.

    $$d = \arg\max_{\lVert d - g_0 \rVert \le c \lVert g_0 \rVert}\ \min_i\ \langle g_i, d \rangle,
    \qquad g_0 = \tfrac1T \sum_i g_i$$

    which is $g_0 + c \lVert g_0 \rVert g_w / \lVert g_w \rVert$ for the $g_w = \sum_i w_i g_i$ of
    the hull with the least $\langle g_w, g_0 \rangle + c \lVert g_0 \rVert \lVert g_w \rVert$. The
    weights returned are those of d. By an active set method in unit vectors, where the lowest point
    of a face is the root of a quadratic. At the solution $\langle g_i, d \rangle$ is the same where
    $w_i > 0$ and not smaller elsewhere: reached to 1e-9 of $\lVert g_i \rVert \lVert g_0 \rVert
    (1 + c \sum_j w_j \lVert g_j \rVert / \lVert g_w \rVert)$.

    Where the least is at the origin, as it often is at a Pareto-stationary point, $g_w$ has no
    direction, and many d are best, with a worst task that neither gains nor loses. If $g_w$ is
    shorter than 1e-4 of $\sum_j w_j \lVert g_j \rVert$, ours is the one of them nearest to $g_0$:
    its projection on the dual cone. If $g_0$ is shorter than 1e-6 of the mean length, d is $g_0$. A
    zero vector has no say in who is worst off.

    Args:
        gram: The inner products G of the vectors, `[T, T]`, float64, positive semi-definite.
        c: The radius of the ball, relative to the length of the mean.

    Raises:
        RuntimeError: The solution was not reached.

    Source: the problem of Liu et al., *Conflict-averse gradient descent*, NeurIPS 2021, equation 5,
    solved exactly (ours).
    """
    norms, cosines = unit_rows(gram.numpy())
    equal = np.full(len(norms), 1 / len(norms))
    mean = math.sqrt(max(float(gram.mean()), 0.0))
    if c == 0 or not mean > 1e-6 * norms.mean():
        return torch.from_numpy(equal)
    moves = (norms > 0).nonzero()[0]
    overlaps = (cosines @ norms)[moves] / (len(norms) * mean)
    norms = norms[moves]
    prices = norms.min() / norms
    exact = cosines[moves[:, None], moves]
    cosines = ridged(exact)

    def slopes(x: Vector) -> tuple[Vector, float]:
        y = cosines @ x
        length = np.sqrt(x @ y)
        if c >= 1 and length <= 1e-5 * x.sum():  # no lower than the origin, and there
            return np.zeros_like(x), 1.0
        y = overlaps + (c / length) * y
        return y - prices * level(x, y, prices), 1 + c * x.sum() / length

    def goal(index: NDArray[np.intp]) -> Vector:
        p, a = prices[index], overlaps[index]
        across, along = np.linalg.solve(cosines[index[:, None], index], np.stack([a, p], axis=1)).T
        base = (p @ across) / (p @ along)
        across = across - base * along
        # Without a root the function falls for ever: the goal is then the way it falls.
        root = math.sqrt(max(c**2 - float((a - base * p) @ across), 0.0) / float(p @ along))
        x: Vector = root * along - across
        return x / float(np.abs(x).sum())

    start = np.zeros_like(norms)
    start[((overlaps + c) / prices).argmin()] = 1.0
    x = minimize(start, slopes, goal, "The best direction for the worst-off task")
    length = math.sqrt(max(float(x @ (exact @ x)), 0.0))
    if length > 1e-4 * x.sum():
        equal[moves] += c * mean * x / (length * norms)
        return torch.from_numpy(equal)
    shift = dual_cone_weights(gram, torch.from_numpy(equal)).numpy() - equal
    distance = math.sqrt(max(float(shift @ gram.numpy() @ shift), 0.0))
    return torch.from_numpy(equal + shift * min(1.0, c * mean / max(distance, 1e-300)))
