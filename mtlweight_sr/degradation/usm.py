"""The sharpening of ground truth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlweight_sr.degradation.blur import filter_lines
from mtlweight_sr.degradation.memory import keep_freed_memory
from mtlweight_sr.degradation.precision import sent

__all__ = ["usm_sharpen"]


@torch.no_grad()
def usm_sharpen(
    images: Tensor, *, weight: float = 0.5, radius: int = 50, threshold: float = 10.0
) -> Tensor:
    r"""Unsharp masking of ground truth, where the image differs enough from its blur.

    With $G$ a Gaussian filter of radius + 1 taps (radius even), $r=x-G x$ and $m=[|255
    r|>\text{threshold}]$: $y=(G m)\,\mathrm{clip}(x+\text{weight}\,r,0,1)+(1-G m)\,x$. The Gaussian
    is applied as two 1-D filters. No gradients.

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
    line = sent((line / line.sum()).to(images.dtype), images.device)
    parts: Sequence[Tensor] = (images,)
    if images.is_cpu:
        keep_freed_memory()
        parts = torch.split(images, 1)  # one image at a time stays in the cache
    with torch.autocast(images.device.type, enabled=False):
        done = [_sharpened(part, line, weight, threshold) for part in parts]
    return torch.cat(done) if len(done) > 1 else done[0]


def _sharpened(images: Tensor, line: Tensor, weight: float, threshold: float) -> Tensor:
    residual = filter_lines(images, line, line)
    residual = torch.sub(images, residual, out=residual)
    # In place, the comparison gives zeros and ones in the images' own type.
    soft = filter_lines(residual.abs().mul_(255).gt_(threshold), line, line)
    sharpened = torch.add(images, residual, alpha=weight, out=residual).clamp_(0, 1)
    return torch.lerp(images, sharpened, soft, out=sharpened)
