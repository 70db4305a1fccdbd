r"""Ways to filter one image on a CPU, reflect padding.

Convolutions of a shape that was not met lately begin with the making of machine code, which takes
longer than filtering a small image does. Hence small images take products of matrices where they
can, and elsewhere sizes are rounded up so that shapes return.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mtlweight_sr.degradation.precision import sent

__all__ = ["by_rows", "dense", "filter_lines", "good_length", "reflect_pad", "reflected"]

_BANDS = 16
# Sizes are rounded up to it.
_STEP = 16
# The most pixels of an image whose lines go through matrices, which cost up to a third more than
# convolutions of a shape met before and a fraction of what others cost.
_SMALL = 250**2


def _more(length: int) -> int:
    return -length % _STEP


def reflected(lengths: Sequence[int], before: int, total: int) -> Tensor:
    """Indices `[B, total]` that mirror lines about their end pixels as often as needed."""
    length = np.array(lengths, np.int64)[:, None]
    period = np.maximum(2 * length - 2, 1)
    at = np.arange(-before, total - before) % period
    return torch.from_numpy(np.minimum(at, np.where(length > 1, period - at, 0)))


def _padded(images: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    height, width = images.shape[-2:]
    if max(left, right) < width and max(top, bottom) < height:
        return F.pad(images, (left, right, top, bottom), mode="reflect")
    rows, columns = (
        sent(reflected([length], before, before + length + after)[0], images.device)
        for length, before, after in ((height, top, bottom), (width, left, right))
    )
    return images.index_select(-2, rows).index_select(-1, columns)


def reflect_pad(images: Tensor, pad: int) -> Tensor:
    """Reflect padding that leaves the border single (reflect-101), of any width.

    Args:
        images: `[B, C, H, W]`.
        pad: Pixels on each of the four sides.
    """
    return _padded(images, pad, pad, pad, pad)


def _down(images: Tensor, lines: Tensor) -> Tensor:
    """Filter each column `[N, H, W]` with its own line `[W, k]`, valid part only.

    The columns stand as channels that lie innermost in memory, which is how they lie already.
    """
    channels, taps = lines.shape
    out = F.conv2d(images.mT[:, :, None], lines.view(channels, 1, 1, taps), groups=channels)
    return out[:, :, 0].mT


def _along(images: Tensor, line: Tensor) -> Tensor:
    """Filter each row of `[N, H, W]` with one line `[k]`, valid part only."""
    height = images.shape[1]
    weight = line.expand(height, 1, 1, -1)
    return F.conv2d(images[:, :, None], weight, groups=height)[:, :, 0]


def _banded(line: Tensor) -> Tensor:
    """The matrix `[16, 15 + k]` whose product with a piece of a signal filters it."""
    taps = len(line)
    rows = line.new_zeros(_STEP, _STEP + taps)
    rows[:, :taps] = line
    # Rows that are one shorter begin one further to the right.
    return rows.flatten()[:-_STEP].view(_STEP, -1)


def _down_small(planes: Tensor, line: Tensor) -> Tensor:
    """Filter each column `[N, 16 n + k - 1, W]` with one line `[k]`, valid part only."""
    matrix = _banded(line)
    pieces = planes.unfold(1, matrix.shape[1], _STEP).mT
    return (matrix @ pieces).flatten(1, 2)


def _along_small(planes: Tensor, line: Tensor) -> Tensor:
    """Filter each row `[N, H, 16 n + k - 1]` with one line `[k]`, valid part only."""
    matrix = _banded(line)
    pieces = planes.unfold(2, matrix.shape[1], _STEP)
    return (pieces.reshape(-1, matrix.shape[1]) @ matrix.T).view(*planes.shape[:2], -1)


def filter_lines(images: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Cross-correlate all images with the product of two lines, reflect padding.

    Args:
        images: `[B, C, H, W]`.
        vertical: Taps along the height, `[k]` with odd k.
        horizontal: Taps along the width, of any odd number.
    """
    height, width = images.shape[-2:]
    small = height * width <= _SMALL
    pad = len(vertical) // 2
    beside = 0 if small else _more(width)
    planes = _padded(images, 0, beside, pad, pad + _more(height)).flatten(0, 1)
    if small:
        planes = _down_small(planes, vertical)[:, :height]
    else:
        planes = _down(planes, vertical.expand(planes.shape[-1], -1))
    pad = len(horizontal) // 2
    planes = _padded(planes[:, None, :, :width], pad, pad + _more(width), 0, 0)[:, 0]
    filtered = (_along_small if small else _along)(planes, horizontal)
    return filtered[:, :height, :width].reshape(images.shape)


def dense(images: Tensor, kernel: Tensor) -> Tensor:
    """Cross-correlate all images with one kernel, cut into 16 bands that stand as channels.

    Vector instructions then work on 16 pixels at a time, where three channels would leave most of
    them idle.
    """
    height, width = images.shape[-2:]
    side = kernel.shape[-1]
    pad = side // 2
    missing = -height % _BANDS
    band = (height + missing) // _BANDS
    planes = _padded(images, pad, pad + _more(width), pad, pad + missing).flatten(0, 1)
    bands = planes.unfold(1, band + 2 * pad, band).mT.flatten(0, 1)
    weight = kernel.expand(len(bands), 1, side, side)
    out = F.conv2d(bands[None], weight, groups=len(bands))
    return out.reshape(len(planes), -1, width + _more(width))[:, :height, :width].reshape(
        images.shape
    )


@lru_cache(maxsize=256)
def good_length(least: int, step: int = _STEP) -> int:
    """The next length that transforms fast: a multiple of a step without prime factors above 7."""
    length = least + -least % step
    while True:
        rest = length
        for factor in (2, 3, 5, 7):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += step


@lru_cache(maxsize=64)
def _waves(length: int, side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines `[2 F, side]` of a line's taps, each frequency twice."""
    frequency = np.arange(length // 2 + 1).repeat(2)[:, None] * (2 * math.pi / length)
    angle = frequency * (np.arange(side) - side // 2)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def _complex(pairs: Tensor) -> Tensor:
    return torch.view_as_complex(pairs.view(*pairs.shape[:-1], -1, 2))


def by_rows(images: Tensor, kernels: Tensor, *, mirrored: bool) -> Tensor:
    """Cross-correlate images with their kernels `[B, k, k]`, by Fourier transforms along the rows.

    The horizontal part of a kernel becomes one complex number per frequency and line of the kernel,
    real where the kernel is its own mirror image; the vertical part a 1-D filter per frequency.
    """
    batch, channels, height, width = images.shape
    side = kernels.shape[-1]
    pad = side // 2
    length = good_length(width + 2 * pad)
    even, odd = ((torch.from_numpy(x) @ kernels.mT).flatten(0, 1) for x in _waves(length, side))
    planes = _padded(images, pad, length - width - pad, pad, pad + _more(height)).transpose(0, 1)
    spectrum = torch.view_as_real(torch.fft.rfft(planes))
    del planes
    # The frequencies of all images stand side by side, as columns that are filtered apart.
    spectrum = spectrum.transpose(1, 2).flatten(2)
    filtered = _complex(_down(spectrum, even))
    if not mirrored:
        filtered = filtered.add_(_complex(_down(spectrum, odd)), alpha=1j)
    del spectrum
    filtered = filtered[:, :height].reshape(channels, height, batch, -1).permute(2, 0, 1, 3)
    out: Tensor = torch.fft.irfft(filtered, n=length)[..., pad : pad + width]
    return out.contiguous()
