"""The conflict-free direction: the same angle to every task gradient."""

from __future__ import annotations

from typing import Literal, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlweight.gradient_strategy import GramStrategy
from mtlweight.options import GramOptions, Tasks

Array = NDArray[np.float64]
Length = Literal["projection", "minimum", "harmonic", "geometric", "arithmetic", "maximum"]


class ConFIG(GramStrategy):
    r"""Conflict-free inverse gradients: a step at the same angle to every task gradient.

    $$q = C^+ \mathbf{1}, \qquad \hat u \parallel \sum_i q_i u_i, \qquad
    d = \Big( \sum_i g_i \cdot \hat u \Big)\, \hat u, \qquad
    w_i = \kappa\, q_i / \lVert g_i \rVert$$

    with $u_i = g_i / \lVert g_i \rVert$, $C_{ij} = u_i \cdot u_j$ and $\kappa$ what the length of d
    asks for. The matrix C is all it needs. Eigenvalues of C below $10^{-6}$ of the largest count as
    zero in single precision ($10^{-14}$ in double; ours): gradients within some $10^{-3}$ in angle
    are taken as one, since nothing tells what else they differ by, and large weights would multiply
    that. Where no direction
    has the same angle to all, which takes linearly dependent gradients, it is the one closest to
    that by least squares; exact opposites cancel. A task without gradient has no say, and gets the
    mean weight of the others (ours), which only its head can feel.

    Use it when the losses differ in scale or kind, as the equations and boundary conditions of a
    physics-informed network do, and none may be raised by a step: the angle does not depend on the
    scales. Not when there are more tasks than gradients can be independent, or when one gradient is
    noise alone: it is given the same angle as the others.

    Args:
        tasks: The names of the tasks, or their number.
        length: The $n_i$ in $\lVert d \rVert = \sum_i n_i \cos(g_i, d)$: `"projection"`, the length
            of each gradient; or for all tasks alike their `"minimum"`, `"harmonic"` mean,
            `"geometric"` mean, `"arithmetic"` mean or `"maximum"`.
        **options: See `GramOptions`.

    Source: Liu, Chu & Thuerey, *ConFIG: towards conflict-free training of physics informed neural
    networks*, ICLR 2025, arXiv 2408.11104; the lengths are those of the authors' code.
    """

    def __init__(
        self, tasks: Tasks, *, length: Length = "projection", **options: Unpack[GramOptions]
    ) -> None:
        super().__init__(tasks, **options)
        self.length = length

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        norms = np.sqrt(gram.numpy().diagonal())
        moves = norms > 0
        if not moves.any():
            return torch.full_like(losses, 1.0)
        q, cosines = equal_cosines(gram.numpy(), self.rounding)
        n = norms[moves]
        lengths = np.zeros_like(norms)
        lengths[moves] = {
            "projection": lambda: n,
            "minimum": n.min,
            "harmonic": lambda: 1 / (1 / n).mean(),
            "geometric": lambda: np.exp(np.log(n).mean()),
            "arithmetic": n.mean,
            "maximum": n.max,
        }[self.length]()
        square = q @ cosines  # the squared length of the sum of the q_i u_i
        scale = (lengths @ cosines) / square if square > 0 else lengths[moves].mean()
        weights = scale * np.divide(q, norms, out=np.zeros_like(q), where=moves)
        weights[~moves] = max(weights[moves].mean(), 0.0)
        return torch.from_numpy(weights)


def equal_cosines(gram: Array, rounding: float) -> tuple[Array, Array]:
    """Returns q `[n]` whose sum of q_i u_i has the same product with each unit gradient u_i: one.

    And the products, `[n]`, which are not one but closest to it by least squares where the u_i are
    linearly dependent. Where those are zero, q is one: the u_i add up to nothing. Both are zero for
    gradients that vanish, of which there is at least one that does not.
    """
    norms, values, vectors = components(gram, rounding)
    moves = norms > 0
    sums = vectors.T @ moves
    if sums @ sums <= 1e-4 * rounding:
        return moves.astype(np.float64), np.zeros_like(norms)
    return moves * (vectors @ (sums / values)), moves * (vectors @ sums)


def components(gram: Array, rounding: float) -> tuple[Array, Array, Array]:
    """Returns the lengths `[n]`, and eigenvalues `[r]` and eigenvectors `[n, r]` of the cosines.

    The r above the rounding of the products, relative to the largest: in single precision, where it
    is a millionth, angles under some 1e-3 are lost.
    """
    norms = np.sqrt(gram.diagonal())
    inverse = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    values, vectors = np.linalg.eigh(inverse[:, None] * gram * inverse)
    kept = values > rounding * values[-1]
    return norms, values[kept], vectors[:, kept]
