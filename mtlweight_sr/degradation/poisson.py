r"""Poisson counts as a non-decreasing function of a standard normal number $z$.

- $\lambda<8$: the inverse of the Poisson distribution function at $\Phi(z)$, exact;
- $\lambda\ge8$: $\lfloor\lambda+z\sqrt{\lambda-5/36}+(z^2-1)/6\rceil$, the expansion of Cornish and
  Fisher (1938) with a variance less by what rounding (1/12) and the square (1/18) add. Mean and
  variance are those of the Poisson law to 1e-4, the third central moment to 1.2 % at 8 and less
  above, the total variation distance is below 0.003.

Means are those of 8-bit levels: $\lambda=nv/255$ with v in 0..255 and n, the number of grains, a
power of two up to 256.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlweight_sr.degradation.precision import full_precision, sent_together

__all__ = ["Levels", "Sizes", "poisson_row", "poisson_rows"]

Levels = Literal["auto", 256]
"""How grains of Poisson noise are counted, see `add_noise`."""
Sizes = Sequence[tuple[int, int]] | None

_LUMA = (0.2989, 0.587, 0.114)
_EXACT_BELOW = 8.0
# Cells of the table of exact counts: the axis of z from -8 to 8 in eighths, so narrow that the
# count rises by one at most inside a cell.
_CELLS, _CELLS_PER_UNIT, _REACH = 128, 8.0, 8.0

_Reals = NDArray[np.float32]


@lru_cache(maxsize=1)
def _exact_table() -> tuple[NDArray[np.int32], NDArray[np.int32], _Reals, _Reals]:
    """Exact counts for small means; means are n / 255 of an 8-bit level, n a power of two.

    Returns:
        By the exponent of n, `[9]` each: where the rows of its levels begin, and the last of them.
        By row and cell of z, flat: the count at the left end of the cell, and the place inside it
        where the count rises by one (infinity where it does not).
    """
    grains = 2.0 ** np.arange(9)
    last = np.minimum(np.ceil(_EXACT_BELOW * 255 / grains) - 1, 255).astype(np.int32)
    first = np.concatenate([[0], np.cumsum(last + 1)[:-1]]).astype(np.int32)
    means = np.concatenate(
        [np.arange(n + 1) * (g / 255) for n, g in zip(last, grains, strict=True)]
    )
    k = np.arange(64)
    factorial = np.array([math.factorial(int(n)) for n in k], np.float64)
    mass = np.exp(-means[:, None]) * means[:, None] ** k / factorial
    below = mass.cumsum(1)
    above = mass[:, ::-1].cumsum(1)[:, ::-1] - mass
    # The smaller tail gives the more exact quantile.
    lower, upper = (torch.special.ndtri(torch.from_numpy(p.copy())).numpy() for p in (below, above))
    steps = np.where(below < 0.5, lower, -upper)
    left = (np.arange(_CELLS) / _CELLS_PER_UNIT - _REACH)[:, None, None]
    counts = (steps < left).sum(2)
    inner = np.concatenate([steps, np.full((len(steps), 1), np.inf)], 1)
    inner = np.take_along_axis(inner, counts.T, 1)
    return first, last, counts.T.astype(np.float32).ravel(), inner.astype(np.float32).ravel()


def _exact_counts(levels: Tensor, z: Tensor, first: int) -> Tensor:
    counts, inner = (torch.from_numpy(table) for table in _exact_table()[2:])
    cell = z.add(_REACH).mul_(_CELLS_PER_UNIT).int().clamp_(0, _CELLS - 1)
    cell = levels.int().clamp_(max=255).add_(first).mul_(_CELLS).add_(cell)
    return counts.index_select(0, cell).add_(z >= inner.index_select(0, cell))


def _large_counts(means: Tensor, z: Tensor) -> Tensor:
    """Counts where the mean is large; NaN may stand where it is below 5/36."""
    slope = means.sub(5 / 36).sqrt_().add_(z, alpha=1 / 6)
    return slope.mul_(z).add_(means).sub_(1 / 6).round_().clamp_(min=0)


def _quantized(images: Tensor) -> Tensor:
    return images.mul(255).round_().clamp_(0, 255)


def _luma(images: Tensor) -> Tensor:
    red, green, blue = (images[:, c : c + 1] for c in range(3))
    luma = red.contiguous() * _LUMA[0]
    return luma.add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def _exponent(levels: Tensor) -> int:
    """Log2 of the number of grains of one image of 8-bit levels, on a CPU."""
    flat = levels.flatten()
    # A small part of a photograph shows more than 128 levels already, and more do not matter.
    for part in (flat[::32], flat[::4], flat):
        present = int(np.count_nonzero(np.bincount(part.to(torch.uint8).numpy(), minlength=256)))
        if present > 128:
            return 8
    return max(present - 1, 0).bit_length()


def poisson_row(image: Tensor, z: Tensor, gray: bool, levels: Levels) -> tuple[Tensor, float]:
    """Counts minus means of one image `[1, 3, H, W]` on a CPU, and the number of grains."""
    values = _quantized(_luma(image) if gray else image.contiguous())
    z = z[:, : values.shape[1]]
    exponent = _exponent(values) if levels == "auto" else 8
    grains = 2.0**exponent
    means = values.mul_(grains / 255)
    counts = _large_counts(means, z)
    # The least of all is found in a quarter of the time that the places take.
    if means.numel() and float(means.min()) < _EXACT_BELOW:
        small = torch.from_numpy(np.flatnonzero(means.numpy() < _EXACT_BELOW))
        first = int(_exact_table()[0][exponent])
        few, z = (x.flatten().index_select(0, small) for x in (means, z))
        few.mul_(255 / grains).round_()
        counts.view(-1).scatter_(0, small, _exact_counts(few, z, first))
    return counts.sub_(means), grains


class _Tables(NamedTuple):
    """What an accelerator looks up, by the number of levels present `[257]` and by cells."""

    begin: Tensor  # of the cells of level 0
    grains: Tensor  # `[257, 2]`: their number over 255, and one over it
    cells: Tensor  # count at the left end times ticks, plus the ticks at the end that are past it


# Places on the axis of z are integers on an accelerator, so that both steps of a look-up are exact.
_TICKS = 17  # log2 of their number in a cell
_MASK = (1 << _TICKS) - 1
_TICKS_PER_UNIT = int(_CELLS_PER_UNIT) << _TICKS
_TABLES: dict[torch.device, _Tables] = {}


def _tables(device: torch.device) -> _Tables:
    """The tables on a device, sent there once."""
    if device in _TABLES:
        return _TABLES[device]
    first, last, counts, inner = _exact_table()
    left = np.arange(_CELLS) / _CELLS_PER_UNIT - _REACH
    place = (inner.reshape(-1, _CELLS) - left) * _TICKS_PER_UNIT
    past = (1 << _TICKS) - np.ceil(place.clip(0, 1 << _TICKS)).astype(np.int32)
    cells = (counts.reshape(-1, _CELLS).astype(np.int32) << _TICKS) + past
    # All levels have cells, so that no index must be cut off; those of large means are not used.
    rows = first[:, None] + np.minimum(np.arange(256), last[:, None])
    exponent = np.array([max(n - 1, 0).bit_length() for n in range(257)])
    begin = exponent * (256 * _CELLS)
    grains = np.stack([2.0**exponent / 255, 0.5**exponent], 1)
    tables = _Tables(
        *sent_together(
            [
                torch.from_numpy(begin.astype(np.int32)),
                torch.from_numpy(grains.astype(np.float32)),
                torch.from_numpy(cells[rows].ravel()),
            ],
            device,
        )
    )
    # Tensors without data, as a shape-only run makes them, must not be kept.
    if type(tables.cells) is Tensor:
        _TABLES[device] = tables
    return tables


def _present(levels: Tensor, beyond: Sequence[Tensor]) -> Tensor:
    """How many levels each image `[3, H, W]` has, `[B]`."""
    # What `beyond` adds outside the content leads to the columns that are not counted.
    index = levels + beyond[0] if beyond else levels.long()
    for more in beyond[1:]:
        index.add_(more)
    found = torch.zeros(len(levels), 768, dtype=torch.long, device=levels.device)
    return found.scatter_(1, index.flatten(1), 1)[:, :256].sum(1)


def poisson_rows(
    images: Tensor, z: Tensor, scale: Tensor, gray: Tensor, levels: Levels, sizes: Sizes
) -> Tensor:
    """The noise of a batch `[B, 3, H, W]` on any device; gray rows have one z in all channels."""
    batch, channels, height, width = images.shape
    mix = np.where(
        gray.numpy()[:, None, None], np.array(_LUMA, np.float32), np.eye(3, dtype=np.float32)
    )
    small = [torch.from_numpy(mix * np.float32(255)), scale.float()]
    if sizes is not None and levels == "auto":
        for length, limit in zip((height, width), np.array(sizes, np.int64).T, strict=True):
            outside = np.where(np.arange(length) < limit[:, None], 0, 256)
            small.append(torch.from_numpy(outside))
    mixed, scale, *outside_of = sent_together(small, images.device)
    beyond = [
        x.view(batch, 1, *shape)
        for x, shape in zip(outside_of, ((height, 1), (1, width)), strict=False)
    ]
    with full_precision(images.device):
        values = torch.bmm(mixed, images.flatten(2)).view(batch, channels, height, width)
    del images
    values = values.round_().int().clamp_(0, 255)
    tables = _tables(values.device)
    if levels == "auto":
        present = _present(values, beyond)
        begin = tables.begin.index_select(0, present).view(batch, 1, 1, 1)
        grains = tables.grains.index_select(0, present)
    else:
        begin, grains = tables.begin[256], tables.grains[256:]
    means = values * grains[:, 0].view(-1, 1, 1, 1)
    cell = torch.add(begin, values, alpha=_CELLS)
    del values
    ticks = torch.rsub(z, int(_REACH) * _TICKS_PER_UNIT, alpha=-_TICKS_PER_UNIT).int()
    ticks.clamp_(0, (_CELLS << _TICKS) - 1)
    cell.add_(ticks >> _TICKS)
    exact = tables.cells.index_select(0, cell.flatten()).view_as(cell)
    del cell
    exact.add_(ticks.bitwise_and_(_MASK)).bitwise_right_shift_(_TICKS)
    del ticks
    counts = torch.where(means < _EXACT_BELOW, exact, _large_counts(means, z))
    del exact
    return counts.sub_(means).mul_((scale * grains[:, 1]).view(-1, 1, 1, 1))
