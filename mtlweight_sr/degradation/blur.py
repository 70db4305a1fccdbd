r"""Filtering with per-sample kernels, reflect padding at each sample's own border.

On a CPU every row takes the cheapest of three ways, chosen from what the host knows of its kernel:

- a product of two lines: two 1-D filters;
- a small kernel: the image is cut into 16 bands that stand as channels, so that vector instructions
  work on 16 pixels at a time where three channels would leave most of them idle;
- else: the Fourier transform along the rows, where the horizontal part of the kernel becomes one
  complex number per frequency and line of the kernel, and the vertical part a 1-D filter per
  frequency. It is cheaper than a 2-D transform, since the filter's few taps cost less than a second
  transform there and back, and than the dense kernel. A kernel that is its own mirror image has
  real numbers there and needs half of it.

Elsewhere all rows go through one 2-D Fourier transform, gathered by index tables from the host.
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

from mtlweight_sr.degradation.kernels import Kernels
from mtlweight_sr.degradation.precision import sent, sent_together

__all__ = ["blur", "filter_lines", "reflect_pad"]

Sizes = Sequence[tuple[int, int]] | None

_BANDS = 16
# The largest sides at which the dense kernel beats the transform: for mirrored kernels, for others.
_DENSE = {True: 9, False: 11}


def _has_fast_convolutions() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def _reflected(lengths: Sequence[int], before: int, total: int) -> Tensor:
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
        sent(_reflected([length], before, before + length + after)[0], images.device)
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


def filter_lines(images: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Cross-correlate all images with the product of two lines, reflect padding.

    Args:
        images: `[B, C, H, W]`.
        vertical: Taps along the height, `[k]` with odd k.
        horizontal: Taps along the width, of any odd number.
    """
    width = images.shape[-1]
    pad = len(vertical) // 2
    planes = _padded(images, 0, 0, pad, pad).flatten(0, 1)
    planes = _down(planes, vertical.expand(width, -1))
    pad = len(horizontal) // 2
    planes = _padded(planes[:, None], pad, pad, 0, 0)[:, 0]
    return _along(planes, horizontal).reshape(images.shape)


def _dense(images: Tensor, kernel: Tensor) -> Tensor:
    height = images.shape[-2]
    side = kernel.shape[-1]
    pad = side // 2
    band = -(-height // _BANDS)
    missing = band * _BANDS - height
    planes = _padded(images, pad, pad, pad, pad + missing).flatten(0, 1)
    bands = planes.unfold(1, band + 2 * pad, band).mT.flatten(0, 1)
    weight = kernel.expand(len(bands), 1, side, side)
    out = F.conv2d(bands[None], weight, groups=len(bands))
    return out.reshape(len(planes), -1, images.shape[-1])[:, :height].reshape(images.shape)


@lru_cache(maxsize=256)
def _good_length(least: int) -> int:
    """The next length that transforms fast: a multiple of 8 without prime factors above 7."""
    length = -(-least // 8) * 8
    while True:
        rest = length
        for factor in (2, 3, 5, 7):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 8


@lru_cache(maxsize=64)
def _waves(length: int, side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines `[2 F, side]` of a line's taps, each frequency twice."""
    frequency = np.arange(length // 2 + 1).repeat(2)[:, None] * (2 * math.pi / length)
    angle = frequency * (np.arange(side) - side // 2)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def _complex(pairs: Tensor) -> Tensor:
    return torch.view_as_complex(pairs.view(*pairs.shape[:-1], -1, 2))


def _by_rows(images: Tensor, kernel: Tensor, *, mirrored: bool) -> Tensor:
    width = images.shape[-1]
    pad = kernel.shape[-1] // 2
    length = _good_length(width + 2 * pad)
    planes = _padded(images, pad, length - width - pad, pad, pad).flatten(0, 1)
    cos, sin = map(torch.from_numpy, _waves(length, kernel.shape[-1]))
    spectrum = torch.view_as_real(torch.fft.rfft(planes)).flatten(2)
    filtered = _complex(_down(spectrum, cos @ kernel.T))
    if not mirrored:
        filtered = filtered.add_(_complex(_down(spectrum, sin @ kernel.T)), alpha=1j)
    out: Tensor = torch.fft.irfft(filtered, n=length)[..., pad : pad + width]
    return out.reshape(images.shape)


def _row(image: Tensor, kernels: Kernels, i: int) -> Tensor:
    side = kernels.sizes[i]
    if side == 1:
        return image
    image = image.contiguous()
    inside = slice((kernels.taps.shape[-1] - side) // 2, (kernels.taps.shape[-1] + side) // 2)
    if kernels.separable[i]:
        vertical, horizontal = kernels.lines[i, :, inside]
        return filter_lines(image, vertical, horizontal)
    kernel = kernels.taps[i, inside, inside]
    mirrored = kernels.mirrored[i]
    if side <= _DENSE[mirrored]:
        return _dense(image, kernel)
    return _by_rows(image, kernel, mirrored=mirrored)


def _together(images: Tensor, kernels: Kernels, sizes: Sizes) -> Tensor:
    batch, channels, height, width = images.shape
    device = images.device
    side = max(kernels.sizes)
    pad = side // 2
    inside = slice((kernels.taps.shape[-1] - side) // 2, (kernels.taps.shape[-1] + side) // 2)
    shape = _good_length(height + 2 * pad), _good_length(width + 2 * pad)
    if sizes is None:
        sizes = [(height, width)] * batch
    taps = kernels.taps[:, inside, inside].to(images.dtype)
    rows, columns, batched, *rest = sent_together(
        [
            _reflected([h for h, _ in sizes], pad, shape[0])[:, :, None],
            _reflected([w for _, w in sizes], pad, shape[1])[:, None, :],
            torch.arange(batch)[:, None, None],
            *([taps] if taps.is_cpu else []),
        ],
        device,
    )
    response = torch.fft.rfft2(rest[0] if rest else taps, s=shape).conj_physical()
    out = images.new_empty(images.shape)
    # One channel at a time holds a third of the memory: transforms need several copies.
    for c in range(channels):
        filtered = torch.fft.rfft2(images[:, c][batched, rows, columns]).mul_(response)
        out[:, c] = torch.fft.irfft2(filtered, s=shape)[..., :height, :width]
        del filtered
    return out


def _described(images: Tensor, kernels: Tensor) -> Kernels:
    batch = len(images)
    if (
        kernels.ndim != 3
        or kernels.shape[0] != batch
        or kernels.shape[1] != kernels.shape[2]
        or kernels.shape[1] % 2 == 0
    ):
        raise ValueError(
            f"expected `kernels` of shape [{batch}, k, k] with odd k, one per image, got "
            f"{list(kernels.shape)}; write kernel.expand({batch}, -1, -1) to share one"
        )
    side = kernels.shape[-1]
    no = (False,) * batch
    return Kernels(kernels, (side,) * batch, kernels.new_zeros(batch, 2, side), no, no)


def blur(images: Tensor, kernels: Kernels | Tensor, sizes: Sizes = None) -> Tensor:
    """Cross-correlate every image with its own kernel, reflect padding, nothing clamped.

    Args:
        images: `[B, C, H, W]`. Rows may be of different sizes: the content of a row lies in its
            upper left corner.
        kernels: One per image: `Kernels` from `degradation_kernels`, whose structure makes the
            filter cheap, or a tensor `[B, k, k]` with odd k of the images' dtype and device. Rows
            with a pulse are left as they are.
        sizes: Height and width of each row's content; None where every row fills `images`.

    Returns:
        `[B, C, H, W]`, which may share memory with `images` where a kernel is a pulse. Outside a
        row's size the values mean nothing. On a CPU, a row has the same bits alone and in any
        batch.

    Raises:
        ValueError: Kernels that are not odd squares, or not one per image.
    """
    if isinstance(kernels, Tensor):
        kernels = _described(images, kernels)
    elif len(kernels) != len(images):
        raise ValueError(
            f"expected one kernel per image, got {len(kernels)} `kernels` for {len(images)} "
            "images; write kernels[rows] with the rows of these images"
        )
    moved = [i for i, side in enumerate(kernels.sizes) if side > 1]
    if not moved or not images.numel():
        return images
    fast = images.is_cpu and images.dtype == torch.float32 and _has_fast_convolutions()
    if not fast:
        out = _together(images, kernels, sizes)
        if len(moved) == len(images):
            return out
        still = torch.tensor([side == 1 for side in kernels.sizes])[:, None, None, None]
        return torch.where(sent(still, images.device), images, out)
    if len(images) == 1 and (sizes is None or tuple(sizes[0]) == tuple(images.shape[-2:])):
        return _row(images, kernels, 0)
    out = images.clone()
    for i in moved:
        height, width = images.shape[-2:] if sizes is None else sizes[i]
        out[i : i + 1, :, :height, :width] = _row(images[i : i + 1, :, :height, :width], kernels, i)
    return out
