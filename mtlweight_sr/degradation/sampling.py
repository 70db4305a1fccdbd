"""Drawing degradation parameters: ids to rows of the unit cube, rows of the cube to parameters."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlweight_sr.degradation.columns import COLUMNS, NOISE_TYPES, Branch, branches
from mtlweight_sr.degradation.mixture import Space
from mtlweight_sr.degradation.parameters import (
    DegradationParameters,
    FinalParameters,
    StageParameters,
)
from mtlweight_sr.degradation.philox import as_ids, uniforms, words

__all__ = [
    "ROW",
    "Ids",
    "draw_cube",
    "draw_parameters",
    "draw_rows",
    "draw_seeds",
    "parameters_from_cube",
]

ROW = 40
"""Random words of one draw of one id: 38 for the cube, one for a box, one for the noise seed."""

Ids = Sequence[int] | Tensor
"""Sample ids: whole numbers >= 0, any order, repeats allowed."""


def draw_rows(
    ids: Ids, seed: int, stream: int = 0, attempt: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """All that one draw of every id is made of.

    Args:
        ids: Sample ids, `[B]`.
        seed: Whole number in [0, 2**64).
        stream: Whole number in [0, 2**32), for draws that must not share numbers (training 0,
            validation 1, ...).
        attempt: Which draw of the id, for rejection at the level of parameters.

    Returns:
        The cube `[B, 38]` float64, a further uniform `[B]` float64, and the noise seeds `[B]`
        int64.
    """
    row = words(as_ids(ids), seed, stream, ROW, start=ROW * attempt)
    seeds = torch.from_numpy((row[:, -1] >> np.uint64(1)).astype(np.int64))
    numbers = uniforms(row[:, :-1])
    return numbers[:, : len(COLUMNS)].contiguous(), numbers[:, -1].contiguous(), seeds


def draw_cube(ids: Ids, seed: int, stream: int = 0) -> Tensor:
    """Uniform rows of the unit cube, each a pure function of (seed, stream, id).

    Args:
        ids: Sample ids, `[B]`.
        seed: Whole number in [0, 2**64).
        stream: Whole number in [0, 2**32).

    Returns:
        `[B, 38]` float64 in [0, 1), on the CPU.

    Raises:
        TypeError: Ids, seed or stream that are no whole numbers.
        ValueError: Ids, seed or stream out of range.
    """
    return draw_rows(ids, seed, stream)[0]


def draw_seeds(ids: Ids, seed: int, stream: int = 0) -> Tensor:
    """The keys of the noise fields of the same draw as `draw_cube`, `[B]` int64 >= 0."""
    return draw_rows(ids, seed, stream)[2]


class _Table:
    """All branches of a space as arrays, one line each, in the order of `branches`."""

    def __init__(self, space: Space) -> None:
        maps = branches(space)
        # A line that holds nowhere starts each parameter: none is left without a line.
        nowhere = Branch({COLUMNS[0]: (Fraction(2), Fraction(2))}, 0, 0)
        lines = [line for some in maps.values() for line in (nowhere, *some)]
        widest = max(len(line.where) for line in lines)
        self.names = tuple(maps)
        self.starts = np.cumsum([0, *(1 + len(some) for some in maps.values())])[:-1]
        self.column = np.zeros((widest, len(lines), 1), dtype=np.intp)
        self.low = np.full(self.column.shape, -np.inf)
        self.high = np.full(self.column.shape, np.inf)
        # low + span * (v - start) / length; a constant has span 0.
        self.value, self.span, self.start, self.length = np.zeros((4, len(lines), 1))
        self.read = np.zeros(len(lines), dtype=np.intp)
        self.length[:] = 1
        for i, line in enumerate(lines):
            for side, (column, (low, high)) in enumerate(line.where.items()):
                self.column[side, i] = COLUMNS.index(column)
                self.low[side, i], self.high[side, i] = float(low), float(high)
            self.value[i] = line.low
            if line.column is not None:
                start, end = map(float, line.where[line.column])
                self.span[i], self.start[i], self.length[i] = (
                    line.high - line.low,
                    start,
                    end - start,
                )
                self.read[i] = COLUMNS.index(line.column)

    def values(self, cube: NDArray[np.float64]) -> NDArray[np.float64]:
        """The value of every parameter in every row, `[parameters, B]`; 0 where none is defined."""
        rows = np.ascontiguousarray(cube.T)
        inside = np.ones((len(self.read), len(cube)), dtype=bool)
        for column, low, high in zip(self.column[..., 0], self.low, self.high, strict=True):
            v = rows[column]
            inside &= (v >= low) & (v < high)
        value = self.value + self.span * ((rows[self.read] - self.start) / self.length)
        # At most one line of a parameter holds in a row: the sum is its value.
        return np.add.reduceat(np.where(inside, value, 0), self.starts)


_table = lru_cache(maxsize=32)(_Table)
_AT_ONCE = 1024


class _Maps:
    """The parameters of rows of the cube."""

    def __init__(self, space: Space, cube: NDArray[np.float64]) -> None:
        table = _table(space)
        # In parts, since every row needs a few hundred lines.
        parts = [cube[i : i + _AT_ONCE] for i in range(0, max(len(cube), 1), _AT_ONCE)]
        values = torch.from_numpy(np.concatenate([table.values(part) for part in parts], axis=1))
        self.values: dict[str, Tensor] = dict(zip(table.names, values, strict=True))

    def real(self, name: str) -> Tensor:
        return self.values[name].clone()

    def integer(self, name: str) -> Tensor:
        return self.values[name].long()

    def flag(self, name: str) -> Tensor:
        return self.values[name].bool()

    def stage(self, s: int) -> StageParameters:
        noise_type, jpeg = self.integer(f"noise_type_{s}"), self.flag(f"jpeg_{s}")
        sigma, scale = self.real(f"noise_sigma_{s}"), self.real(f"noise_scale_{s}")
        return StageParameters(
            blur=self.flag(f"blur_{s}"),
            kernel_size=self.integer(f"kernel_size_{s}"),
            sinc=self.flag(f"sinc_{s}"),
            family=self.integer(f"family_{s}"),
            sigma_x=self.real(f"sigma_x_{s}"),
            sigma_y=self.real(f"sigma_y_{s}"),
            rotation=self.real(f"rotation_{s}"),
            beta=self.real(f"beta_{s}"),
            omega=self.real(f"omega_{s}"),
            resize_scale=self.real(f"resize_scale_{s}"),
            resize_mode=self.integer(f"resize_mode_{s}"),
            noise_type=noise_type,
            noise_level=self.real(f"noise_level_{s}"),
            noise_strength=torch.where(noise_type == NOISE_TYPES.index("gaussian"), sigma, scale),
            gray_noise=self.flag(f"gray_noise_{s}"),
            jpeg=jpeg,
            jpeg_quality=torch.where(jpeg, self.values[f"jpeg_quality_{s}"], 100.0),
        )

    def final(self) -> FinalParameters:
        return FinalParameters(
            sinc=self.flag("final_sinc"),
            kernel_size=self.integer("final_kernel_size"),
            omega=self.real("final_omega"),
            before_jpeg=self.flag("final_sinc_before_jpeg"),
            resize_mode=self.integer("final_resize_mode"),
        )


def parameters_from_cube(space: Space, cube: Tensor, seeds: Tensor) -> DegradationParameters:
    """The parameters that rows of the unit cube stand for.

    Args:
        space: The distribution.
        cube: `[B, 38]` float64 in [0, 1), columns in the order of `COLUMNS`.
        seeds: Keys of the noise fields, `[B]` int64.

    Raises:
        TypeError: `cube` is not float64 or `seeds` not int64.
        ValueError: Wrong shapes, or values of `cube` outside [0, 1).
    """
    if cube.dtype != torch.float64 or seeds.dtype != torch.int64:
        raise TypeError(
            f"expected `cube` in float64 and `seeds` in int64, got {cube.dtype} and {seeds.dtype}; "
            "write cube.double() and seeds.long()"
        )
    if cube.ndim != 2 or cube.shape[1] != len(COLUMNS) or seeds.shape != cube.shape[:1]:
        raise ValueError(
            f"expected `cube` of shape [B, {len(COLUMNS)}] and `seeds` of shape [B], got "
            f"{list(cube.shape)} and {list(seeds.shape)}; write cube[None] for a single row"
        )
    cube, seeds = cube.cpu(), seeds.cpu()
    if not bool(((cube >= 0) & (cube < 1)).all()):
        raise ValueError(
            f"expected `cube` in [0, 1), got values from {cube.min():g} to {cube.max():g}; write "
            "draw_cube(ids, seed)"
        )
    maps = _Maps(space, cube.numpy())
    return DegradationParameters(
        scale=space.scale,
        first=maps.stage(1),
        second=maps.stage(2),
        final=maps.final(),
        cube=cube,
        seed=seeds,
    )


def draw_parameters(space: Space, ids: Ids, seed: int, stream: int = 0) -> DegradationParameters:
    """Parameters of samples from the whole space, each a pure function of (seed, stream, id).

    Arguments and errors are those of `draw_cube`.
    """
    cube, _, seeds = draw_rows(ids, seed, stream)
    return parameters_from_cube(space, cube, seeds)
