"""Crops of HR and LR images at the same place, drawn by key."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlweight_sr.degradation.philox import as_ids, uniforms, words

__all__ = ["crop_pair"]

_STREAM = 0x43524F50  # the draws of degradations use small numbers


def crop_pair(
    hr: Tensor | Sequence[Tensor],
    lr: Tensor | Sequence[Tensor],
    size: int,
    keys: Sequence[int] | Tensor,
    scale: int,
) -> tuple[Tensor, Tensor]:
    """Cut every HR image and its LR image at one place of its own.

    Degrading more than what is kept takes filters' borders out of the training crops, and moves the
    grid of JPEG blocks about in them: with `context` further pixels on a side of HR, crops lie
    anywhere on context / scale + 1 positions a side, equally likely. The place of a row is a
    function of its key alone.

    Args:
        hr: `[B, 3, H, W]`, or B images `[3, H, W]` of any sizes.
        lr: What `degrade` made of them.
        size: Side of the HR crops in pixels, a multiple of `scale`.
        keys: One whole number >= 0 for each row, such as its sample seed; on the host.
        scale: HR size over LR size.

    Returns:
        The HR crops `[B, 3, size, size]` and LR crops `[B, 3, size / scale, size / scale]`, new
        memory on the images' devices.

    Raises:
        TypeError: Keys that are no whole numbers.
        ValueError: Numbers of rows that differ, an LR image of another size than its HR image
            demands, or a size that does not fit.
    """
    if not len(hr) == len(lr) == len(keys) or not len(hr):
        raise ValueError(
            f"expected as many `hr` as `lr` and `keys`, at least one, got {len(hr)}, {len(lr)} and "
            f"{len(keys)}; write crop_pair(hr, degrade(hr, parameters), size, seeds, scale)"
        )
    if size < 1 or size % scale:
        raise ValueError(
            f"expected `size` as a multiple of the scale {scale}, got {size}; write "
            f"{max(scale, size - size % scale)}"
        )
    side = size // scale
    draws = uniforms(words(as_ids(keys), 0, _STREAM, 2)).tolist()
    whole, small = [], []
    for image, degraded, (down, right) in zip(hr, lr, draws, strict=True):
        height, width = degraded.shape[-2:]
        if tuple(image.shape[-2:]) != (height * scale, width * scale) or side > min(height, width):
            raise ValueError(
                f"expected `hr` of {scale} times the size of `lr` and at least {size}x{size}, got "
                f"{_shown(image)} and {_shown(degraded)}; degrade the images with `scale` {scale}"
            )
        top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
        small.append(degraded[..., top : top + side, left : left + side])
        top, left = scale * top, scale * left
        whole.append(image[..., top : top + size, left : left + size])
    return torch.stack(whole), torch.stack(small)


def _shown(image: Tensor) -> str:
    return "x".join(map(str, image.shape[-2:]))
