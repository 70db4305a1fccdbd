"""Gaussian and Poisson noise with per-sample strength."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["gaussian_noise", "poisson_noise"]

_LUMA = (0.2989, 0.587, 0.114)


def _per_sample(values: Tensor, images: Tensor) -> Tensor:
    return values.to(device=images.device, dtype=images.dtype).view(-1, 1, 1, 1)


def gaussian_noise(
    images: Tensor, sigma: Tensor, gray: Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    """A field of Gaussian noise, to be added to the images.

    Args:
        images: `[B, C, H, W]`; only its shape, dtype and device matter.
        sigma: Standard deviation of each sample in 1/255, `[B]`.
        gray: Whether the channels of a sample share one field, bool `[B]`. Samples never share a
            field.
        generator: Where the numbers come from.
    """
    field = torch.randn(images.shape, dtype=images.dtype, device=images.device, generator=generator)
    shared = gray.to(images.device).view(-1, 1, 1, 1)
    return torch.where(shared, field[:, :1], field) * (_per_sample(sigma, images) / 255)


def _levels(image: Tensor) -> Tensor:
    """The smallest power of two that is at least the number of distinct 8-bit levels, a scalar."""
    present = torch.bincount((image * 255).round().long().flatten(), minlength=256) > 0
    # Comparisons with powers of two stay exact where a rounded logarithm might not.
    powers = 2 ** torch.arange(9, device=image.device)
    return 2 ** (present.sum() > powers).sum()


def poisson_noise(
    images: Tensor,
    scale: Tensor,
    gray: Tensor,
    *,
    levels: Literal["auto", 256] = "auto",
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""A field of Poisson noise, to be added to the images.

    With $v$ the image rounded to 8-bit levels and $n$ the number of grains per unit: scale times
    $P/n-v$, $P$ Poisson with mean $n v$; the variance is $\text{scale}^2\,v/n$.

    Args:
        images: `[B, 3, H, W]`, values outside [0, 1] count as the nearest of the two.
        scale: Multiplier of each sample, `[B]`.
        gray: Whether the noise of a sample is that of its luma, the same in every channel, bool
            `[B]`.
        levels: "auto": n is the smallest power of two that reaches the number of distinct levels in
            the sample, so that flat images get far more noise (Real-ESRGAN's law). 256: n is 256
            for every image.
        generator: Where the numbers come from.

    Raises:
        ValueError: Another value of `levels`.
    """
    if levels not in ("auto", 256):
        raise ValueError(f"expected `levels` 'auto' or 256, got {levels!r}; write levels='auto'")
    weights = images.new_tensor(_LUMA).view(3, 1, 1)
    fields = []
    for image, shared in zip(images, gray.tolist(), strict=True):
        source = (image * weights).sum(0, keepdim=True) if shared else image
        clean = (source * 255).round().clamp(0, 255) / 255
        grains = _levels(clean) if levels == "auto" else 256
        noise = torch.poisson(clean * grains, generator=generator) / grains - clean
        fields.append(noise.expand_as(image))
    return torch.stack(fields) * _per_sample(scale, images)
