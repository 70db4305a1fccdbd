r"""Filtering with per-sample kernels, reflect padding at each sample's own border.

On a CPU every row takes the cheapest of three ways, chosen from what the host knows of its kernel:

- a product of two lines: two 1-D filters;
- a small kernel: the image is cut into 16 bands that stand as channels, so that vector instructions
  work on 16 pixels at a time where three channels would leave most of them idle;
- else: the Fourier transform along the rows, where the horizontal part of the kernel becomes one
  complex number per frequency and line of the kernel, and the vertical part a 1-D filter per
  frequency. It is cheaper than a 2-D transform, since the filter's few taps cost less than a second
  transform there and back, and than the dense kernel. A kernel that is its own mirror image has
  real numbers there and needs half of it. Small images of one size with such kernels share their
  transforms, whatever the sides of the kernels.

Elsewhere all rows go through one 2-D Fourier transform, gathered by index tables from the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlweight_sr.degradation.batching import portions
from mtlweight_sr.degradation.filtering import (
    by_rows,
    dense,
    filter_lines,
    good_length,
    reflect_pad,
    reflected,
)
from mtlweight_sr.degradation.kernels import Kernels
from mtlweight_sr.degradation.precision import sent, sent_together

__all__ = ["blur", "filter_lines", "reflect_pad"]

Sizes = Sequence[tuple[int, int]] | None

# The largest sides at which the dense kernel beats the transform: for mirrored kernels, for others.
_DENSE = {True: 9, False: 11}
# The most pixels of an image that shares its transforms: alone, calls cost it more than work does.
_SHARED = 2**14


def _has_fast_convolutions() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def _middle(kernels: Kernels, side: int) -> slice:
    total = kernels.taps.shape[-1]
    return slice((total - side) // 2, (total + side) // 2)


def _shares(kernels: Kernels, i: int, height: int, width: int) -> bool:
    """Whether a row's image, of this height and width, may share its transforms."""
    return kernels.mirrored[i] and not kernels.separable[i] and height * width <= _SHARED


def _row(image: Tensor, kernels: Kernels, i: int) -> Tensor:
    side = kernels.sizes[i]
    if side == 1:
        return image
    image = image.contiguous()
    if _shares(kernels, i, *image.shape[-2:]):
        # With all taps, as beside others: whoever they are, the bits are the same.
        return by_rows(image, kernels.taps[i : i + 1], mirrored=True)
    inside = _middle(kernels, side)
    if kernels.separable[i]:
        vertical, horizontal = kernels.lines[i, :, inside]
        return filter_lines(image, vertical, horizontal)
    mirrored = kernels.mirrored[i]
    if side <= _DENSE[mirrored]:
        return dense(image, kernels.taps[i, inside, inside])
    return by_rows(image, kernels.taps[i : i + 1, inside, inside], mirrored=mirrored)


def _together(images: Tensor, kernels: Kernels, sizes: Sizes) -> Tensor:
    batch, channels, height, width = images.shape
    device = images.device
    side = max(kernels.sizes)
    pad = side // 2
    inside = _middle(kernels, side)
    shape = good_length(height + 2 * pad, 4), good_length(width + 2 * pad, 4)
    if sizes is None:
        sizes = [(height, width)] * batch
    # Turned about: what transforms do is a convolution, whose result begins at its last tap.
    taps = kernels.taps[:, inside, inside].flip(1, 2).to(images.dtype)
    rows, columns, batched, *rest = sent_together(
        [
            reflected([h for h, _ in sizes], pad, shape[0])[:, :, None],
            reflected([w for _, w in sizes], pad, shape[1])[:, None, :],
            torch.arange(batch)[:, None, None],
            *([taps] if taps.is_cpu else []),
        ],
        device,
    )
    response = torch.fft.rfft2(rest[0] if rest else taps, s=shape)
    out = images.new_empty(images.shape)
    content = (..., slice(side - 1, side - 1 + height), slice(side - 1, side - 1 + width))
    # One channel at a time holds a third of the memory: transforms need several copies.
    for c in range(channels):
        filtered = torch.fft.rfft2(images[:, c][batched, rows, columns]).mul_(response)
        out[:, c] = torch.fft.irfft2(filtered, s=shape)[content]
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
    if sizes is None:
        shared = [i for i in moved if _shares(kernels, i, *images.shape[-2:])]
        for part in portions([(images.shape[-2], images.shape[-1])] * len(shared)):
            rows = [shared[place] for place in part]
            out[rows] = by_rows(images[rows], kernels.taps[rows], mirrored=True)
        moved = [i for i in moved if i not in shared]
    for i in moved:
        height, width = images.shape[-2:] if sizes is None else sizes[i]
        out[i : i + 1, :, :height, :width] = _row(images[i : i + 1, :, :height, :width], kernels, i)
    return out
