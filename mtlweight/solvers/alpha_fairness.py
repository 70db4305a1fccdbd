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
        alpha: $\alpha$, from 0.1 to 10.

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
    lengths = norms[moves] ** ((1 - alpha) / (1 + alpha))
    unit = float(lengths.max())
    bargain = _Bargain(cosines, lengths / unit, alpha)
    weights = np.empty_like(norms)
    weights[moves] = unit * bargain.solution() / norms[moves]
    weights[~moves] = weights[moves].mean()
    return torch.from_numpy(weights)


class _Bargain:
    r"""The problem in $x_i = \lVert g_i \rVert w_i$, where all vectors have length one.

    $$(C x)_i = m_i (x_i / m_i)^{-1/\alpha}$$

    with m the x of orthogonal vectors, in units of its longest. The right side is what task i
    wishes to gain.
    """

    def __init__(self, cosines: Matrix, lengths: Vector, alpha: float) -> None:
        self.cosines = cosines
        self.sizes = np.abs(cosines)
        self.lengths = lengths
        self.floor = SMALL * lengths
        self.alpha = alpha

    def gap(self, x: Vector) -> tuple[Vector, Vector, Vector]:
        """Returns what is gained beyond the wish, the size of both, and how the wish falls in x."""
        wish = self.lengths * (x / self.lengths) ** (-1 / self.alpha)
        return self.cosines @ x - wish, self.sizes @ x + wish, wish / (self.alpha * x)

    def solution(self) -> Vector:
        """Returns x, within the bound."""
        power = self.alpha / (1 + self.alpha)
        m, square = self.lengths, float(self.lengths @ self.lengths)
        bound = square * CLOSE ** (-2 * power)
        longest = max(float(m @ (self.cosines @ m)), CLOSE * square)
        x, solved = self.lowest(m * (square / longest) ** power, 4 * bound), self
        if x @ x > bound:
            x, solved = self.bounded(x, bound)
        gap, size, _ = solved.gap(x)
        wanting = (x > self.floor) | (gap < 0)
        error = (np.abs(gap) * wanting / size).max()
        if not error <= 1e-10:
            raise RuntimeError(
                f"The {self.alpha}-fair weights of {len(x)} gradients were not found: {error} off."
            )
        return x

    def lowest(self, x: Vector, ceiling: float) -> Vector:
        """Returns the solution, or a point with x @ x above the ceiling on the way to it."""
        shrink = max(100.0**-self.alpha, 1e-15)  # in one step, a wish grows a hundredfold at most
        gap, size, fall = self.gap(x)
        for _ in range(200):
            # A ridge, for where wishes no longer fall; the gap knows nothing of it.
            step = np.linalg.solve(self.cosines + np.diag(fall + 1e-14), -gap)
            change = (np.abs(step / x) * (x > self.floor)).max()
            last = change <= 1e-6 or (np.abs(gap) <= 1e-13 * size).all()
            # The function falls as long as its slope along the step is negative; what it may rise
            # to at the end of a good step, and by rounding.
            limit = -0.5 * (step @ gap) + 1e-15 * (np.abs(step) @ size)
            least = np.maximum(shrink * x, self.floor)
            for halvings in range(50):
                there = np.maximum(x + 0.5**halvings * step, least)
                gap, size, fall = self.gap(there)
                if last or (there - x) @ gap <= limit:
                    break
            x = there
            if last or x @ x > ceiling:
                break
        return x

    def bounded(self, x: Vector, bound: float) -> tuple[Vector, _Bargain]:
        """Returns the solution with x @ x at the bound, and the problem with the ridge it takes."""
        ridge, low, high = CLOSE, 0.0, math.inf
        for _ in range(100):
            ridged = _Bargain(self.cosines + ridge * np.eye(len(x)), self.lengths, self.alpha)
            x = ridged.lowest(x, math.inf)
            excess = math.log(float(x @ x) / bound)
            if abs(excess) <= 1e-4:
                break
            low, high = (ridge, high) if excess > 0 else (low, ridge)
            less = np.linalg.solve(ridged.cosines + np.diag(ridged.gap(x)[2]), x)
            slope = 2 * ridge * float(x @ less) / float(x @ x)
            ridge *= math.exp(min(max(excess / slope, -5.0), 5.0))
            if not low < ridge < high:
                ridge = math.sqrt(low * high)
        return x, ridged
