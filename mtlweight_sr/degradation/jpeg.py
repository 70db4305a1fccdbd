r"""JPEG compression on tensors, one quality per sample.

Both modes are 4:2:0: luma and half-size chroma, 8x8 DCT, division by a table, rounding, and back.
They differ in every rounding:

| | `"libjpeg"`: codec of image files | `"basicsr"`: codec of published trainings |
| --- | --- | --- |
| colours | rounded to integers | real |
| padding to 16 | border repeated | black |
| chroma down | libjpeg's alternating rounding | mean of four |
| DCT | libjpeg's integers, rounded after each direction | real |
| tables | integers in 1..255 from an integer quality | real, from a real quality |
| luma table | as standardised | transposed, as in the published code |
| chroma up | triangle filter | repetition |
| result | 8-bit levels | real |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from mtlweight_sr.degradation.batching import Canvas, portions
from mtlweight_sr.degradation.jpeg_basicsr import basicsr_codec
from mtlweight_sr.degradation.jpeg_blocks import Content
from mtlweight_sr.degradation.jpeg_libjpeg import libjpeg_codec
from mtlweight_sr.degradation.precision import full_precision
from mtlweight_sr.degradation.resize import Size, check_sizes

__all__ = ["JpegMode", "jpeg"]

JpegMode = Literal["libjpeg", "basicsr"]
"""The two codecs."""


def _check(images: Tensor, quality: Tensor, mode: str, sizes: Sequence[Size] | None) -> None:
    if images.dtype != torch.float32:
        raise TypeError(
            f"expected `images` in float32, got {images.dtype}: levels of 1/255 vanish in half "
            "precision; write images.float()"
        )
    if images.ndim != 4 or images.shape[1] != 3 or quality.shape != images.shape[:1]:
        raise ValueError(
            f"expected `images` [B, 3, H, W] and `quality` [B], got {list(images.shape)} and "
            f"{list(quality.shape)}; write image[None] and torch.tensor([75.0]) for a single image"
        )
    if mode not in get_args(JpegMode):
        raise ValueError(
            f"expected `mode` among {get_args(JpegMode)}, got {mode!r}; write mode='libjpeg'"
        )
    # A list is looked through faster than a tensor.
    if quality.device.type == "cpu" and not all(1 <= one <= 100 for one in quality.tolist()):
        raise ValueError(
            f"expected `quality` in [1, 100], got {quality.tolist()}; write quality.clamp(1, 100)"
        )
    check_sizes(images, sizes)


def _together(
    images: Tensor, quality: Tensor, mode: JpegMode, sizes: Sequence[Size] | None
) -> Tensor:
    """All rows at once: nothing here waits for the device."""
    codec = libjpeg_codec if mode == "libjpeg" else basicsr_codec
    content = Content(images.shape[-2], images.shape[-1])
    if sizes is not None:
        content = Content(*torch.tensor(sizes).unbind(1))
    with full_precision(images.device):
        return codec(images, quality, content)


@torch.no_grad()
def jpeg(
    images: Tensor,
    quality: Tensor,
    mode: JpegMode = "libjpeg",
    sizes: Sequence[Size] | None = None,
) -> Tensor:
    """Compress and decompress every image with its own quality.

    On the CPU rows are coded in small portions, with the same bits alone and in any batch or
    canvas; on an accelerator all at once, without waiting for it. No gradients.

    Args:
        images: `[B, 3, H, W]` in [0, 1], float32, any size.
        quality: `[B]` in [1, 100], best left on the CPU; the libjpeg mode rounds it to integers.
        mode: "libjpeg" gives what libjpeg-turbo gives, all but bit for bit; "basicsr" reproduces
            the training codec of Real-ESRGAN, its defects included.
        sizes: Height and width of each image, in the upper left corner of its canvas; what is
            outside is not read, and arbitrary levels in the result. None: images fill the canvas.

    Returns:
        `[B, 3, H, W]` in [0, 1], in the libjpeg mode on multiples of 1/255.

    Raises:
        TypeError: Images that are not float32.
        ValueError: Wrong shapes or sizes, an unknown mode, or a quality outside [1, 100] (looked at
            on the CPU only).
    """
    _check(images, quality, mode, sizes)
    shape = images.shape[-2], images.shape[-1]
    if sizes is not None and all(tuple(size) == shape for size in sizes):
        sizes = None
    if not images.is_cpu:
        return _together(images, quality, mode, sizes)
    x = Canvas(images, list(sizes or [shape] * len(images)))
    together = portions(x.sizes)
    if len(together) == 1:
        return _together(images, quality, mode, sizes)
    result = torch.zeros_like(images)
    for rows in together:
        part = slice(rows[0], rows[-1] + 1)
        own = x[part]
        height, width = own.images.shape[-2:]
        result[part, :, :height, :width] = _together(own.images, quality[part], mode, own.ragged)
    return result
