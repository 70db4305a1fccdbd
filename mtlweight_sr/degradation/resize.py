"""Resizing without antialiasing, by a factor or to a size."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from mtlweight_sr.degradation.space import MODES

__all__ = ["resize_by", "resize_to"]


def _check(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"expected `mode` among {MODES}, got {mode!r}; write mode='bicubic'")


def resize_by(images: Tensor, factor: float, mode: str) -> Tensor:
    """Resize by a factor: the size is rounded down, the step between samples is exactly 1/factor.

    Args:
        images: `[B, C, H, W]`.
        factor: Positive; 1 returns the images as they are.
        mode: One of `MODES`. Area averages adaptive bins, bicubic uses a = -0.75; neither bilinear
            nor bicubic smooths before it samples.

    Returns:
        `[B, C, max(1, floor(H factor)), max(1, floor(W factor))]`.

    Raises:
        ValueError: An unknown mode, or a factor that is not positive.
    """
    _check(mode)
    if not 0 < factor < math.inf:
        raise ValueError(f"expected a positive `factor`, got {factor}; write for example 0.5")
    if factor == 1:
        return images
    height, width = (math.floor(side * factor) for side in images.shape[-2:])
    if min(height, width) < 1:
        return resize_to(images, (max(1, height), max(1, width)), mode)
    return F.interpolate(
        images, scale_factor=factor, mode=mode, align_corners=None if mode == "area" else False
    )


def resize_to(images: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Resize to a size: the step between samples is the ratio of the sizes.

    Args:
        images: `[B, C, H, W]`.
        size: Height and width to reach.
        mode: One of `MODES`, as in `resize_by`.

    Raises:
        ValueError: An unknown mode.
    """
    _check(mode)
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(
        images, size=size, mode=mode, align_corners=None if mode == "area" else False
    )
