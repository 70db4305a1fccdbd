"""The weights of alpha-fair bargains."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mtlweight.solvers.unit_rows import Matrix, Vector, unit_rows

CLOSE = 1e-6  # 1 + cos of two vectors that count as opposed
SMALL = 1e-270  # of the weight that it would have if all were orthogonal: a weight that vanishes


def alpha_fair_weights(gram: Tensor, alpha: float) -> Tensor:
    r"""Returns the weights of the alpha-fair sum of T vectors, `[T]`, all positive.

    $$(G w)_i = w_i^{-1/\alpha} \quad \text{for all i}$$

    the lowest point of the strictly convex $\tfrac12 w^\top G w + \sum_i \phi(w_i)$ with
    $\phi' = -w^{-1/\alpha}$, by damped Newton steps from the weights that orthogonal vectors have,
    $w_i = \lVert g_i \rVert^{-2\alpha/(1+\alpha)}$. Reached to 1e-10 of $\sum_j |G_{ij}| w_j +
    w_i^{-1/\alpha}$. $\alpha = 1$ is Nash's bargain.

    Opposed vectors, or any with the origin in their hull, have no finite solution. The length of
    $(w_i \lVert g_i \rVert)_i$ is therefore bounded, by $10^{6\alpha/(1+\alpha)}$ times what it is
    for orthogonal vectors of these lengths; two vectors reach that at a cosine of $-1 + 10^{-6}$.
    At the bound, the lowest point within it is returned (to 1e-4 of the bound): with one
    $\rho > 0$ for all, $(G w)_i + \rho \lVert g_i \rVert^2 w_i = w_i^{-1/\alpha}$, as if each
    vector had a part of its own of relative length $\sqrt\rho$.

    A zero vector gets the mean weight of the others; if all are zero, the weights are $1/T$.

    Args:
        gram: The inner products G of the vectors, `[T, T]`, float64, positive semi-definite.
        alpha: $\alpha$, from 0.1 to 20.

    Raises:
        RuntimeError: The solution was not reached.

    Source: the problem of Ban & Ji, *Fair resource allocation in multi-task learning*, ICML 2024,
    equation 4; solver and bound ours.
    """
    norms, cosines = unit_rows(gram.numpy())
    moves = norms > 0
    if not moves.any():
        return torch.full((len(norms),), 1 / len(norms), dtype=torch.float64)
    if not moves.all():
        index = moves.nonzero()[0]
        cosines = cosines[index[:, None], index]
    # In x_i = |g_i| w_i, orthogonal vectors have x = lengths, and the equation reads as `_gap`.
    lengths = norms[moves] ** ((1 - alpha) / (1 + alpha))
    unit = lengths.max()
    lengths /= unit
    power = alpha / (1 + alpha)
    square = lengths @ lengths
    bound = square * CLOSE ** (-2 * power)
    start = lengths * (square / max(lengths @ (cosines @ lengths), CLOSE * square)) ** power
    x = _lowest(cosines, lengths, alpha, start, 4 * bound)
    if x @ x > bound:
        x, cosines = _bounded(cosines, lengths, alpha, x, bound)
    gap, size, _ = _gap(cosines, lengths, alpha, x)
    error = (np.abs(gap) / size).max()
    if not error <= 1e-10:
        raise RuntimeError(
            f"The {alpha}-fair weights of {len(x)} gradients were not found: {error} off."
        )
    weights = np.empty_like(norms)
    weights[moves] = unit * x / norms[moves]
    weights[~moves] = weights[moves].mean()
    return torch.from_numpy(weights)


def _gap(
    cosines: Matrix, lengths: Vector, alpha: float, x: Vector
) -> tuple[Vector, Vector, Vector]:
    """Returns by how much the equations are missed, the sizes of their terms, and the slopes."""
    wish = lengths * (x / lengths) ** (-1 / alpha)
    gap = cosines @ x - wish
    gap[(x <= SMALL * lengths) & (gap > 0)] = 0.0
    return gap, np.abs(cosines) @ x + wish, wish / (alpha * x)


def _lowest(cosines: Matrix, lengths: Vector, alpha: float, x: Vector, ceiling: float) -> Vector:
    """Returns the lowest point, or a point as far out as the square root of the ceiling."""
    shrink = max(100.0**-alpha, 1e-15)  # the most in one step: a wish grows a hundredfold
    gap, size, curvature = _gap(cosines, lengths, alpha, x)
    for _ in range(200):
        step = np.linalg.solve(cosines + np.diag(curvature + 1e-14), -gap)
        relative = np.abs(step / x) * (x > SMALL * lengths)
        last = relative.max() <= 1e-7 or (np.abs(gap) <= 1e-13 * size).all()
        t = 1.0
        # The function falls as long as its slope along the step is negative; what it may rise to
        # at the end of a good step, and by rounding.
        limit = -0.5 * (step @ gap) + 1e-15 * (np.abs(step) @ size)
        least = np.maximum(shrink * x, SMALL * lengths)
        while True:
            there = np.maximum(x + t * step, least)
            gap, size, curvature = _gap(cosines, lengths, alpha, there)
            if last or (there - x) @ gap <= limit:
                break
            t *= 0.5
        x = there
        if last or x @ x > ceiling:
            break
    return x


def _bounded(
    cosines: Matrix, lengths: Vector, alpha: float, x: Vector, bound: float
) -> tuple[Vector, Matrix]:
    """Returns the lowest point with x @ x at the bound, and the cosines with the ridge it takes."""
    ridge, low, high = CLOSE, 0.0, math.inf
    for _ in range(100):
        ridged = cosines + ridge * np.eye(len(x))
        x = _lowest(ridged, lengths, alpha, x, math.inf)
        excess = math.log(float(x @ x) / bound)
        if abs(excess) <= 1e-4:
            break
        low, high = (ridge, high) if excess > 0 else (low, ridge)
        curvature = _gap(ridged, lengths, alpha, x)[2]
        slope = 2 * ridge * (x @ np.linalg.solve(ridged + np.diag(curvature), x)) / (x @ x)
        ridge *= math.exp(min(max(excess / float(slope), -5.0), 5.0))
        if not low < ridge < high:
            ridge = math.sqrt(low * high)
    return x, ridged
