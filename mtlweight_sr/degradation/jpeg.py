r"""JPEG compression on tensors, one quality per sample.

Both modes are 4:2:0: luma and half-size chroma, 8x8 DCT, division by a table, rounding, and back.
They differ in every rounding:

| | `"libjpeg"`: codec of image files | `"basicsr"`: codec of published trainings |
| --- | --- | --- |
| colours | rounded to integers | real |
| padding to 16 | border repeated | black |
| chroma down | libjpeg's alternating rounding | mean of four |
| tables | integers in 1..255 from an integer quality | real, from a real quality |
| luma table | as standardised | transposed, as in the published code |
| chroma up | triangle filter | repetition |
| result | 8-bit levels | real |

Source: ITU-T T.81, annexes A and K; T.871 for the colours; the second column describes BasicSR's
    DiffJPEG.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

__all__ = ["JpegMode", "jpeg"]

JpegMode = Literal["libjpeg", "basicsr"]
"""The two codecs."""

_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA_CORNER = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99))


@lru_cache(maxsize=8)
def _constants(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The DCT of flattened blocks `[64, 64]`; luma and chroma tables `[8, 8]`, rows vertical."""
    k = torch.arange(8, dtype=torch.float64)
    dct = torch.cos(torch.outer(k, 2 * k + 1) * torch.pi / 16) / 2
    dct[0] /= 2**0.5
    chroma = torch.full((8, 8), 99.0)
    chroma[:4, :4] = torch.tensor(_CHROMA_CORNER)
    basis = torch.kron(dct, dct).float()
    return basis.to(device), torch.tensor(_LUMA).float().to(device), chroma.to(device)


def _blocks(plane: Tensor) -> Tensor:
    return rearrange(plane, "b (h p) (w q) -> b (h w) (p q)", p=8, q=8)


def _plane(blocks: Tensor, height: int) -> Tensor:
    return rearrange(blocks, "b (h w) (p q) -> b (h p) (w q)", h=height // 8, p=8, q=8)


def _half_up(x: Tensor) -> Tensor:
    return torch.floor(x + 0.5)


def _libjpeg_tables(base: Tensor, quality: Tensor) -> Tensor:
    """Integer tables `[B, 1, 64]` of an integer quality."""
    quality = quality.round()[:, None, None]
    percent = torch.where(quality < 50, torch.floor(5000 / quality), 200 - 2 * quality)
    return torch.floor((base * percent + 50) / 100).clamp(1, 255).flatten(1)[:, None]


def _basicsr_tables(base: Tensor, quality: Tensor) -> Tensor:
    """Real tables `[B, 1, 64]` of a real quality; nearly zero, not zero, at quality 100."""
    quality = quality[:, None, None]
    factor = torch.where(quality < 50, 50 / quality, (200 - 2 * quality) / 100).clamp_min(1e-4)
    return (base * factor).flatten(1)[:, None]


def _integer_codec(plane: Tensor, table: Tensor, basis: Tensor) -> Tensor:
    # libjpeg's DCT delivers eighths as integers; rounding to them first makes ties of the quantiser
    # fall as there.
    eighths = torch.round((_blocks(plane) - 128) @ basis.T * 8)
    steps = torch.floor((eighths.abs() + 4 * table) / (8 * table)) * eighths.sign()
    decoded = (steps * table) @ basis
    return _plane(_half_up(decoded + 128).clamp(0, 255), plane.shape[-2])


def _real_codec(plane: Tensor, table: Tensor, basis: Tensor) -> Tensor:
    steps = torch.round((_blocks(plane) - 128) @ basis.T / table)
    return _plane((steps * table) @ basis + 128, plane.shape[-2])


def _chroma_up(plane: Tensor, height: int, width: int) -> Tensor:
    """Triangle upsampling of integer levels, weights 9, 3, 3, 1, rounding as in libjpeg."""
    padded = F.pad(plane[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    middle, above, below = padded[:, 1:-1], padded[:, :-2], padded[:, 2:]
    rows = rearrange([3 * middle + above, 3 * middle + below], "two b h w -> b (h two) w")
    middle, left, right = rows[..., 1:-1], rows[..., :-2], rows[..., 2:]
    even, odd = 3 * middle + left + 8, 3 * middle + right + 7
    full = torch.floor(rearrange([even, odd], "two b h w -> b h (w two)") / 16)
    return full[:, :height, :width]


def _repeat_last_row(plane: Tensor) -> Tensor:
    """The plane `[B, H, W]` filled up to whole blocks by its last row."""
    return F.pad(plane, (0, 0, 0, -plane.shape[-2] % 8), mode="replicate")


def _libjpeg(images: Tensor, quality: Tensor) -> Tensor:
    basis, luma, chroma = _constants(images.device)
    height, width = images.shape[-2:]
    padding = (0, -width % 16, 0, -height % 2)
    red, green, blue = F.pad(torch.round(images * 255), padding, mode="replicate").unbind(1)
    y = _half_up(0.299 * red + 0.587 * green + 0.114 * blue)
    cb = torch.floor(-0.168735892 * red - 0.331264108 * green + 0.5 * blue + 128.49999)
    cr = torch.floor(0.5 * red - 0.418687589 * green - 0.081312411 * blue + 128.49999)
    luma_table, chroma_table = _libjpeg_tables(luma, quality), _libjpeg_tables(chroma, quality)
    y = _integer_codec(_repeat_last_row(y), luma_table, basis)[:, :height, :width]
    halves = []
    for plane in (cb, cr):
        four = rearrange(plane, "b (h p) (w q) -> b h w (p q)", p=2, q=2).sum(-1)
        bias = torch.arange(four.shape[-1], device=four.device) % 2 + 1
        # libjpeg fills up the width before it halves the chroma, the height after.
        small = _repeat_last_row(torch.floor((four + bias) / 4))
        small = _integer_codec(small, chroma_table, basis)
        # The decoder knows the image's own size: its triangle filter never looks into the padding.
        small = small[:, : (height + 1) // 2, : (width + 1) // 2]
        halves.append(_chroma_up(small, height, width) - 128)
    cb, cr = halves
    rgb = (
        y + _half_up(1.402 * cr),
        y + _half_up(-0.344136286 * cb - 0.714136286 * cr),
        y + _half_up(1.772 * cb),
    )
    return torch.stack(rgb, 1).clamp(0, 255) / 255


def _basicsr(images: Tensor, quality: Tensor) -> Tensor:
    basis, luma, chroma = _constants(images.device)
    height, width = images.shape[-2:]
    red, green, blue = (F.pad(images, (0, -width % 16, 0, -height % 16)) * 255).unbind(1)
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    cb = -0.168736 * red - 0.331264 * green + 0.5 * blue + 128
    cr = 0.5 * red - 0.418688 * green - 0.081312 * blue + 128
    y = _real_codec(y, _basicsr_tables(luma.T, quality), basis)
    table = _basicsr_tables(chroma, quality)
    halves = []
    for plane in (cb, cr):
        small = _real_codec(F.avg_pool2d(plane, 2), table, basis)
        halves.append(small.repeat_interleave(2, -1).repeat_interleave(2, -2) - 128)
    cb, cr = halves
    rgb = (y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb)
    return torch.stack(rgb, 1)[..., :height, :width].clamp(0, 255) / 255


def jpeg(images: Tensor, quality: Tensor, mode: JpegMode = "libjpeg") -> Tensor:
    """Compress and decompress every image with its own quality.

    Args:
        images: `[B, 3, H, W]` in [0, 1], float32, any size.
        quality: `[B]` in [1, 100]; the libjpeg mode rounds it to integers.
        mode: "libjpeg" follows libjpeg-turbo's codec to within one level on 93 % of the pixels of
            photographs and more; "basicsr" reproduces the training codec of Real-ESRGAN, its
            defects included.

    Returns:
        `[B, 3, H, W]` in [0, 1], in the libjpeg mode on multiples of 1/255.

    Raises:
        TypeError: Images that are not float32.
        ValueError: Wrong shapes, an unknown mode, or a quality outside [1, 100] (looked at on the
            CPU only).
    """
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
    if quality.device.type == "cpu" and not bool(((quality >= 1) & (quality <= 100)).all()):
        raise ValueError(
            f"expected `quality` in [1, 100], got {quality.tolist()}; write quality.clamp(1, 100)"
        )
    codec = _libjpeg if mode == "libjpeg" else _basicsr
    return codec(images, quality.to(images))
