"""The shapes of blur kernels, evaluated in float64 on one half of the grid.

Every kernel is symmetric about its centre: 221 points stand for all 441. Rows are sorted by family,
so that all rows go through the same few operators in place: on batches of training size calls cost
more than numbers. Sums run in one fixed order: a row has the same bits alone and in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["SIZE", "KernelRows", "Shapes"]

SIZE = 21
"""Side of the canvas that holds every kernel, in pixels."""

_HALF = SIZE // 2
# Less than a quarter of a rounding step of a pixel of value one in float32.
_NEGLIGIBLE = 2.0**-26

_Reals = NDArray[np.float64]
_Ints = NDArray[np.int64]
_Flags = NDArray[np.bool_]

# The points, from the centre outwards: what they are away from it, and the square ring they are on.
_Y, _X = np.divmod(np.arange(SIZE**2), SIZE) - np.full((2, 1), _HALF)
_RING = np.maximum(abs(_X), abs(_Y))
_POINTS = np.argsort(_RING[: SIZE**2 // 2 + 1], kind="stable")
_X, _Y, _RING = _X[_POINTS], _Y[_POINTS], _RING[_POINTS]
_STARTS = np.searchsorted(_RING, np.arange(_HALF + 1))
# By half a kernel's side: the rings inside it.
_INSIDE = np.tri(_HALF + 1)
# The parts of the squared distance that turn with the kernel by no, the doubled cosine and sine.
_ROUND, _UPRIGHT, _DIAGONAL = (
    part.astype(np.float64) for part in (_X**2 + _Y**2, _X**2 - _Y**2, 2 * _X * _Y)
)

# The point of every pixel of the grid, then those of the column and the row through the centre.
_PLACE = np.empty(SIZE**2, np.int64)
_PLACE[_POINTS] = _PLACE[SIZE**2 - 1 - _POINTS] = np.arange(len(_POINTS))
_CROSS = np.stack([_PLACE.reshape(SIZE, SIZE)[:, _HALF], _PLACE.reshape(SIZE, SIZE)[_HALF]])

# Few distances from the centre occur.
_DISTANCES, _DISTANCE_PLACE = np.unique(np.sqrt(_ROUND), return_inverse=True)
_POSITIVE = np.maximum(_DISTANCES, 1)

_STEPS = 32.0  # of the table of Bessel's function, to the unit


@cache
def _bessel_table() -> _Reals:
    r"""Taylor coefficients `[order, nodes]` of $J_1$ in steps, about nodes one step apart.

    By $J_1(x)=\frac2\pi\int_0^{\pi/2}\sin\tau\,\sin(x\sin\tau)\,d\tau$ and the midpoint rule: the
    integrand is periodic and symmetric, so that 24 points are exact to rounding for x up to 45,
    which covers every kernel.
    """
    points, order = 24, 5
    at = np.sin((np.arange(points) + 0.5) * (math.pi / 2 / points))[:, None]
    nodes = np.arange(46 * _STEPS) / _STEPS
    return np.stack(
        [
            (at ** (m + 1) * np.sin(at * nodes + m * math.pi / 2)).mean(0)
            / (math.factorial(m) * _STEPS**m)
            for m in range(order)
        ]
    )


def _bessel(x: _Reals) -> _Reals:
    """Values of J1 to 1e-11; the argument is overwritten."""
    x *= _STEPS
    node = np.rint(x)
    coefficients = _bessel_table().take(node.astype(np.int64), axis=1)
    x -= node
    bessel: _Reals = coefficients[-1]
    for lower in coefficients[-2::-1]:
        bessel *= x
        bessel += lower
    return bessel


def _squared_distances(out: _Reals, sigma: _Reals, rotation: _Reals, turned: int) -> None:
    """In units of the standard deviations, `[n, 221]`; rows before `turned` are isotropic."""
    along, across = 0.5 / sigma**2
    np.multiply((along + across)[:, None], _ROUND, out=out)
    uneven, turn = (along - across)[turned:, None], 2 * rotation[turned:, None]
    out[turned:] += uneven * np.cos(turn) * _UPRIGHT
    out[turned:] += uneven * np.sin(turn) * _DIAGONAL


def _sincs(out: _Reals, omega: _Reals) -> None:
    at = _bessel(omega * _DISTANCES)
    at *= omega / (2 * math.pi)
    at /= _POSITIVE
    at[:, :1] = omega**2 / (4 * math.pi)
    at.take(_DISTANCE_PLACE, axis=1, out=out)


def _finished(values: _Reals, size: _Ints, signed: int) -> _Ints:
    """Cut values to their size, divide them by their sum, and return effective sizes.

    Rows before `signed` have no value below zero.
    """
    inside = _INSIDE.take(size // 2, axis=0)
    inside[:, 0] = 0.5  # a centre has no second pixel
    rings = np.add.reduceat(values, _STARTS, axis=1)
    rings *= inside
    # A running sum adds in one fixed order, however many rows there are.
    total = 2 * rings.cumsum(1)[:, -1:]
    rings[signed:] = np.add.reduceat(np.abs(values[signed:]), _STARTS, axis=1)
    rings[signed:] *= inside[signed:]
    inside[:, 0] = 1
    inside /= total
    values *= inside.take(_RING, axis=1)
    outside = rings[:, ::-1].cumsum(1)
    sizes: _Ints = SIZE - 2 * (outside > _NEGLIGIBLE * outside[:, -1:]).argmax(1)
    return sizes


@dataclass(frozen=True, eq=False)
class Shapes:
    """Kernels of sum 1.

    Attributes:
        values: At the points, `[B, 221]`.
        sizes: Odd side of the square that holds all of a row's kernel but 2**-26 of it, `[B]`.
    """

    values: _Reals
    sizes: _Ints

    def taps(self, dtype: type[np.float64 | np.float32] = np.float64) -> NDArray[Any]:
        """The whole kernels, `[B, 441]`."""
        return self.values.astype(dtype, copy=False).take(_PLACE, axis=1)

    def lines(self, rows: _Ints) -> _Reals:
        """Factors `[n, 2, 21]` along y and x of kernels that are a product of lines."""
        lines = self.values[rows].take(_CROSS, axis=1)
        lines /= lines.cumsum(2)[..., -1:]
        return lines


@dataclass(frozen=True, eq=False)
class KernelRows:
    """The parameters of kernels.

    Attributes:
        size: Odd sizes, `[B]`.
        sinc: Which are sincs, `[B]`.
        family: Places in `FAMILIES`, `[B]`; read where the kernel is no sinc.
        reals: Both standard deviations, rotation, exponent and cutoff, `[5, B]`.
    """

    size: _Ints
    sinc: _Flags
    family: _Ints
    reals: _Reals

    @classmethod
    def of(cls, stages: Sequence[Sequence[Tensor]]) -> KernelRows:
        """From the columns of stages, one below another.

        Args:
            stages: The columns `[B]` of each on the CPU: whether a row is blurred at all (others
                become pulses, whatever their parameters), whether it is a sinc, size, family, and
                the reals.
        """
        columns = [column for parts in zip(*stages, strict=True) for column in parts]
        n = len(stages)
        on, sinc = torch.cat(columns[: 2 * n]).view(2, -1).numpy()
        size, family = torch.cat(columns[2 * n : 4 * n]).view(2, -1).numpy()
        reals = torch.cat(columns[4 * n :]).double().view(5, -1).numpy()
        reals[1] = np.where(family & 1, reals[1], reals[0])
        reals[4] = np.where(on, reals[4], 1)
        return cls(np.where(on, size, 1), sinc | ~on, family, reals)

    def shapes(self) -> Shapes:
        """The kernels."""
        kind = np.where(self.sinc, 6, self.family)
        order = kind.argsort()
        turned, curved, plateau, sincs = kind[order].searchsorted((1, 2, 4, 6)).tolist()
        reals = self.reals.take(order, axis=1)
        values = np.empty((len(order), len(_POINTS)))
        q = values[:sincs]
        _squared_distances(q, reals[:2, :sincs], reals[2, :sincs], turned)
        q[curved:] **= reals[3, curved:sincs, None]
        q[:plateau] *= -0.5
        np.exp(q[:plateau], out=q[:plateau])
        q[plateau:] += 1
        np.reciprocal(q[plateau:], out=q[plateau:])
        _sincs(values[sincs:], reals[4, sincs:, None])
        sizes = _finished(values, self.size[order], sincs)
        back = order.argsort()
        return Shapes(values.take(back, axis=0), sizes[back])

    def upright(self) -> _Flags:
        """Which kernels equal their mirror image, left for right."""
        sigma_x, sigma_y, rotation = self.reals[:3]
        flags: _Flags = self.sinc | (rotation == 0) | (sigma_x == sigma_y)
        return flags

    def plain(self) -> _Flags:
        """Which kernels are Gaussians proper, products of two lines where they are upright."""
        return ~self.sinc & (self.family < 2)
