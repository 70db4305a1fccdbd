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
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlweight_sr.degradation.precision import sent

__all__ = ["Levels", "Sizes", "poisson_row", "poisson_rows"]

Levels = Literal["auto", 256]
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


_TABLES: dict[torch.device, tuple[Tensor, ...]] = {}


def _exact_tensors(device: torch.device) -> tuple[Tensor, ...]:
    """The table on a device, sent there once."""
    if device in _TABLES:
        return _TABLES[device]
    tables = tuple(sent(torch.from_numpy(table), device) for table in _exact_table())
    # Tensors without data, as a shape-only run makes them, must not be kept.
    if all(type(table) is Tensor for table in tables):
        _TABLES[device] = tables
    return tables


def _exact_counts(levels: Tensor, z: Tensor, first: Tensor | int, last: Tensor | int) -> Tensor:
    _, _, counts, inner = _exact_tensors(levels.device)
    cell = z.add(_REACH).mul_(_CELLS_PER_UNIT).int().clamp_(0, _CELLS - 1)
    cell = levels.int().clamp_(max=last).add_(first).mul_(_CELLS).add_(cell).flatten()
    found = counts.index_select(0, cell).add_(z.flatten() >= inner.index_select(0, cell))
    return found.view(z.shape)


def _large_counts(means: Tensor, z: Tensor) -> Tensor:
    slope = means.sub(5 / 36).clamp_(min=0).sqrt_().add_(z, alpha=1 / 6)
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
    if means.numel() and float(means.min()) < _EXACT_BELOW:
        small = torch.from_numpy(np.flatnonzero(means.numpy() < _EXACT_BELOW))
        first = int(_exact_table()[0][exponent])
        values = means.take(small).mul_(255 / grains).round_()
        exact = _exact_counts(values, z.take(small), first, 255)
        counts.view(-1).index_copy_(0, small, exact)
    return counts.sub_(means), grains


def _exponents(channels: Sequence[Tensor], sizes: Sizes) -> Tensor:
    """Log2 of the number of grains of each image, `[B, 1, 1, 1]` on its device."""
    batch, _, height, width = channels[0].shape
    device = channels[0].device
    inside: Tensor | None = None
    if sizes is not None:
        limits = sent(torch.from_numpy(np.array(sizes, np.int64)), device).view(batch, 2, 1, 1, 1)
        inside = (torch.arange(height, device=device)[:, None] < limits[:, 0]) & (
            torch.arange(width, device=device) < limits[:, 1]
        )
    present = torch.zeros(batch, 257, device=device)
    for values in channels:
        index = values.long() if inside is None else torch.where(inside, values.long(), 256)
        present.scatter_(1, index.flatten(1), 1.0)
    # Comparisons with powers of two stay exact where a rounded logarithm might not.
    powers = 2 ** torch.arange(9, device=device)
    return (present[:, :256].sum(1, keepdim=True) > powers).sum(1).view(batch, 1, 1, 1)


def poisson_rows(
    images: Tensor, z: Tensor, scale: Tensor, gray: Tensor, levels: Levels, sizes: Sizes
) -> Iterator[Tensor]:
    """The noise of a batch, channel by channel, `[B, 1, H, W]` each, on any device."""
    batch = len(images)
    shared = sent(gray, images.device).view(batch, 1, 1, 1)
    scale = sent(scale.float(), images.device).view(batch, 1, 1, 1)
    luma = _luma(images)
    # Levels become indices, which must not be what NaN happens to turn into.
    channels = [
        _quantized(torch.where(shared, luma, images[:, c : c + 1])).nan_to_num_() for c in range(3)
    ]
    first, last, _, _ = _exact_tensors(images.device)
    exponent = (
        _exponents(channels, sizes)
        if levels == "auto"
        else torch.full_like(shared, 8, dtype=torch.long)
    )
    grains = torch.exp2(exponent)
    begin, end = first[exponent], last[exponent]
    for c, values in enumerate(channels):
        own = z[:, :1] if z.shape[1] == 1 else torch.where(shared, z[:, :1], z[:, c : c + 1])
        means = values * (grains / 255)
        exact = _exact_counts(values, own, begin, end)
        counts = torch.where(means < _EXACT_BELOW, exact, _large_counts(means, own))
        yield counts.sub_(means).mul_(scale / grains)
