"""The shapes of blur kernels, evaluated in float64 at as few points as their symmetry allows.

Kernels that depend on the distance from the centre alone have 66 distinct values; the others are
symmetric about the centre, so that one half of the plane is enough. Sums run in one fixed order: a
row has the same bits alone and in any batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["SIZE", "KernelRows"]

SIZE = 21
"""Side of the canvas that holds every kernel, in pixels."""

_HALF = SIZE // 2
# Less than a quarter of a rounding step of a pixel of value one in float32.
_NEGLIGIBLE = 2.0**-26

_Reals = NDArray[np.float64]
_Ints = NDArray[np.int64]
_Flags = NDArray[np.bool_]


class _Points:
    """The points of the grid where a kind of kernel is evaluated, from the centre outwards.

    Args:
        same: A number per pixel of the grid, equal where the kernels are.
    """

    def __init__(self, same: _Ints) -> None:
        y, x = np.divmod(np.arange(SIZE**2), SIZE)
        x, y = x - _HALF, y - _HALF
        ring = np.maximum(np.abs(x), np.abs(y))
        _, first, place, count = np.unique(
            ring * SIZE**3 + same, return_index=True, return_inverse=True, return_counts=True
        )
        self.x, self.y = x[first].astype(np.float64), y[first].astype(np.float64)
        self.ring = ring[first]
        self.count = count.astype(np.float64)
        self.place: _Ints = place.reshape(-1)
        self.starts = np.searchsorted(self.ring, np.arange(_HALF + 1))

    def finished(self, values: _Reals, size: _Ints) -> tuple[_Reals, _Ints]:
        """Values `[n, points]` of kernels of sum 1, and their effective sizes."""
        values *= self.ring <= (size[:, None] - 1) / 2
        weighted = values * self.count
        # A running sum adds in one fixed order, however many rows there are.
        values /= np.add.reduceat(weighted, self.starts, axis=1).cumsum(1)[:, -1:]
        rings = np.add.reduceat(np.abs(weighted, out=weighted), self.starts, axis=1)
        outside = rings[:, ::-1].cumsum(1)[:, ::-1]
        used = (outside > _NEGLIGIBLE * outside[:, :1]).sum(1)
        return values, 2 * used - 1


_ROW, _COLUMN = np.divmod(np.arange(SIZE**2), SIZE) - np.full((2, 1), _HALF)
_RADIAL = _Points(_ROW**2 + _COLUMN**2)
_RADIUS = np.sqrt(_RADIAL.x**2 + _RADIAL.y**2)
_CENTRAL = _Points(np.minimum(np.arange(SIZE**2), np.arange(SIZE**2)[::-1]))


def _profile(q: _Reals, family: _Ints, beta: _Reals) -> _Reals:
    curved = np.flatnonzero(family >= 2)
    if len(curved):
        q[curved] = q[curved] ** beta[curved, None]
    values = np.exp(-q / 2)
    plateau = np.flatnonzero(family >= 4)
    if len(plateau):
        values[plateau] = 1 / (1 + q[plateau])
    return values


@cache
def _bessel_table() -> tuple[float, _Reals]:
    r"""Steps per unit, and Taylor coefficients `[order, nodes]` of $J_1$ about each node.

    By $J_1(x)=\frac2\pi\int_0^{\pi/2}\sin\tau\,\sin(x\sin\tau)\,d\tau$ and the midpoint rule: the
    integrand is periodic and symmetric, so that 24 points are exact to rounding for x up to 45,
    which covers every kernel.
    """
    points, order, steps = 24, 7, 16
    at = np.sin((np.arange(points) + 0.5) * (math.pi / 2 / points))[:, None]
    nodes = np.arange(46 * steps) / steps
    derivatives = [
        (at ** (m + 1) * np.sin(at * nodes + m * math.pi / 2)).sum(0) / points / math.factorial(m)
        for m in range(order)
    ]
    return float(steps), np.stack(derivatives)


def _jinc(omega: _Reals) -> _Reals:
    r"""Values of the sinc at the radii, $\omega J_1(\omega r)/(2\pi r)$, `[n, points]`."""
    steps, table = _bessel_table()
    x = omega[:, None] * _RADIUS
    node = np.rint(x * steps)
    x -= node / steps
    coefficients = table.take(node.astype(np.int64), axis=1)
    bessel = coefficients[-1]
    for lower in coefficients[-2::-1]:
        bessel = bessel * x + lower
    values: _Reals = omega[:, None] / (2 * math.pi) * bessel / np.maximum(_RADIUS, 1)
    values[:, 0] = omega**2 / (4 * math.pi)
    return values


@dataclass(frozen=True, eq=False)
class KernelRows:
    """The parameters of kernels as arrays `[B]`."""

    size: _Ints
    sinc: _Flags
    family: _Ints
    sigma_x: _Reals
    sigma_y: _Reals
    rotation: _Reals
    beta: _Reals
    omega: _Reals

    @classmethod
    def of(cls, *columns: Tensor) -> KernelRows:
        """From tensors on the CPU, in the order of the fields."""
        size, sinc, family, *reals = (column.numpy() for column in columns)
        return cls(size, sinc, family, *(real.astype(np.float64, copy=False) for real in reals))

    @classmethod
    def of_sincs(cls, size: Tensor, omega: Tensor) -> KernelRows:
        """Sincs alone, whose other parameters are never read."""
        n, cutoff = len(size), omega.numpy().astype(np.float64, copy=False)
        one = np.ones(n)
        return cls(
            size.numpy(), np.ones(n, bool), np.zeros(n, np.int64), one, one, one, one, cutoff
        )

    def made(self, dtype: type[np.float64 | np.float32] = np.float64) -> tuple[NDArray[Any], _Ints]:
        """Kernels `[B, 441]`, rounded to a dtype at the end, and their effective sizes `[B]`."""
        kernels: NDArray[Any] = np.empty((len(self.size), SIZE**2), dtype)
        sizes = np.empty_like(self.size)
        uneven = ~self.sinc & (self.family % 2 == 1)
        for points, flags, shape in (
            (_RADIAL, ~uneven, self._radial),
            (_CENTRAL, uneven, self._anisotropic),
        ):
            rows = np.flatnonzero(flags)
            if len(rows):
                values, sizes[rows] = points.finished(shape(rows), self.size[rows])
                kernels[rows] = values.astype(dtype, copy=False).take(points.place, axis=1)
        return kernels, sizes

    def _radial(self, rows: _Ints) -> _Reals:
        values = np.empty((len(rows), len(_RADIUS)))
        flags = self.sinc[rows]
        for shape, some in ((self._sincs, flags), (self._isotropic, ~flags)):
            chosen = np.flatnonzero(some)
            if len(chosen):
                values[chosen] = shape(rows[chosen])
        return values

    def _sincs(self, rows: _Ints) -> _Reals:
        return _jinc(self.omega[rows])

    def _isotropic(self, rows: _Ints) -> _Reals:
        q = (_RADIUS / self.sigma_x[rows, None]) ** 2
        return _profile(q, self.family[rows], self.beta[rows])

    def _anisotropic(self, rows: _Ints) -> _Reals:
        cos, sin = np.cos(self.rotation[rows, None]), np.sin(self.rotation[rows, None])
        x, y = _CENTRAL.x, _CENTRAL.y
        along = (x * cos + y * sin) / self.sigma_x[rows, None]
        across = (y * cos - x * sin) / self.sigma_y[rows, None]
        return _profile(along**2 + across**2, self.family[rows], self.beta[rows])

    def separable(self) -> _Flags:
        """Which kernels are the product of a column and a row."""
        upright = (self.family == 1) & ((self.rotation == 0) | (self.sigma_x == self.sigma_y))
        flags: _Flags = ~self.sinc & ((self.family == 0) | upright)
        return flags

    def lines(self, rows: _Ints) -> _Reals:
        """Factors `[n, 2, 21]` along y and x of separable kernels."""
        across = np.where(self.family[rows] == 0, self.sigma_x[rows], self.sigma_y[rows])
        sigma = np.stack([across, self.sigma_x[rows]], 1)[..., None]
        at = np.abs(np.arange(SIZE) - _HALF)
        values: _Reals = np.exp(-((at / sigma) ** 2) / 2)
        values *= at <= (self.size[rows, None, None] - 1) / 2
        values /= values.cumsum(2)[..., -1:]
        return values
