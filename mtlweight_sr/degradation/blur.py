"""Filtering with per-sample kernels, and the sharpening of ground truth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["blur", "reflect_pad", "usm_sharpen"]


def _reflected(length: int, pad: int, device: torch.device) -> Tensor:
    """Indices that mirror a line about its end pixels as often as `pad` needs."""
    if length == 1:
        return torch.zeros(1 + 2 * pad, dtype=torch.long, device=device)
    at = torch.arange(-pad, length + pad, device=device) % (2 * length - 2)
    return torch.minimum(at, 2 * length - 2 - at)


def reflect_pad(images: Tensor, pad: int) -> Tensor:
    """Reflect padding that leaves the border single (reflect-101), of any width.

    Args:
        images: `[B, C, H, W]`.
        pad: Pixels on each of the four sides.
    """
    height, width = images.shape[-2:]
    if pad < min(height, width):
        return F.pad(images, (pad, pad, pad, pad), mode="reflect")
    rows = _reflected(height, pad, images.device)
    columns = _reflected(width, pad, images.device)
    return images.index_select(-2, rows).index_select(-1, columns)


def blur(images: Tensor, kernels: Tensor) -> Tensor:
    """Cross-correlate every image with its own kernel, reflect padding, nothing clamped.

    Args:
        images: `[B, C, H, W]`.
        kernels: `[B, k, k]` with odd k, of the images' dtype.

    Returns:
        `[B, C, H, W]`.

    Raises:
        ValueError: Kernels that are not odd squares, or not one per image.
    """
    batch, channels, height, width = images.shape
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
    padded = reflect_pad(images, kernels.shape[-1] // 2)
    # One group per channel of each image: a single convolution filters the batch with different
    # kernels.
    weight = kernels.repeat_interleave(channels, 0)[:, None]
    flat = padded.reshape(1, batch * channels, *padded.shape[-2:])
    return F.conv2d(flat, weight, groups=batch * channels).reshape(batch, channels, height, width)


def usm_sharpen(
    images: Tensor, *, weight: float = 0.5, radius: int = 50, threshold: float = 10.0
) -> Tensor:
    r"""Unsharp masking of ground truth, where the image differs enough from its blur.

    With $G$ a Gaussian filter of radius + 1 taps (radius even), $r=x-G x$ and $m=[|255
    r|>\text{threshold}]$: $y=(G m)\,\mathrm{clip}(x+\text{weight}\,r,0,1)+(1-G m)\,x$. The Gaussian
    is applied as two 1-D filters.

    Args:
        images: `[B, C, H, W]` in [0, 1].
        weight: Strength of the sharpening.
        radius: Width of the Gaussian; its sigma follows OpenCV's rule, 0.3((taps - 1)/2 - 1) + 0.8.
        threshold: Smallest difference that is sharpened, in 1/255.

    Source: Real-ESRGAN (2021), section 4.1 and its published code.
    """
    taps = radius + 1 - radius % 2
    sigma = 0.3 * ((taps - 1) / 2 - 1) + 0.8
    at = torch.arange(taps, dtype=torch.float64) - taps // 2
    line = torch.exp(-(at**2) / (2 * sigma**2))
    line = (line / line.sum()).to(images)

    def gaussian(x: Tensor) -> Tensor:
        channels = x.shape[1]
        x = reflect_pad(x, taps // 2)
        x = F.conv2d(x, line.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return F.conv2d(x, line.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)

    residual = images - gaussian(images)
    soft = gaussian((residual.abs() * 255 > threshold).to(images))
    sharp = (images + weight * residual).clamp(0, 1)
    return soft * sharp + (1 - soft) * images
