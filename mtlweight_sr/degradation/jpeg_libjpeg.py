"""The JPEG codec of image files, as libjpeg-turbo computes it.

It computes with libjpeg's own fixed-point integers. float32 holds all but the largest sums of the
second direction exactly, so the result is libjpeg's but for one value in a million or so, whatever
the order in which a device adds up.

Source: ITU-T T.871 for the colours; Loeffler, Ligtenberg and Moschytz (1989) for the integer DCT.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from mtlweight_sr.degradation.jpeg_blocks import (
    Content,
    Dct,
    bordered,
    constant,
    runs_times,
    strips_times,
    tables_of_50,
    tiled,
    twice,
    whole,
)
from mtlweight_sr.degradation.precision import sent

__all__ = ["libjpeg_codec"]

# Left halves of the rows of libjpeg's DCT, 8192 sqrt(8) times the orthonormal one; the right halves
# mirror them, with the sign turned in odd rows.
_INTEGER_DCT = (
    (8192, 8192, 8192, 8192),
    (11363, 9633, 6437, 2260),
    (10703, 4433, -4433, -10703),
    (9633, -2259, -11362, -6436),
    (8192, -8192, -8192, 8192),
    (6437, -11362, 2261, 9633),
    (4433, -10704, 10704, -4433),
    (2260, -6436, 9633, -11363),
)
# In 1/65536, as libjpeg has them.
_TO_YCC = ((19595, 38470, 7471), (-11059, -21709, 32768), (32768, -27439, -5329))
_RED_OF_CR, _GREEN_OF_CB, _GREEN_OF_CR, _BLUE_OF_CB = (
    x / 65536 for x in (91881, -22554, -46802, 116130)
)


class _Constants(NamedTuple):
    dct: Dct
    to_ycc: Tensor
    ycc_rounding: Tensor
    half: Tensor
    half_of_16: Tensor
    scales: Tensor  # `[101, 2, 2, 8, 8]`: quality, luma and chroma, factor before and after


@lru_cache(maxsize=8)
def _constants(device: torch.device) -> _Constants:
    left = torch.tensor(_INTEGER_DCT, dtype=torch.float64)
    sign = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)[:, None]
    dct = torch.cat((left, left.flip(1) * sign), 1)
    # Quarters of a unit (times sqrt(8)) between the directions; eighths after the second.
    factors = (dct / 2**15, twice(dct).T / 2**11, dct.T / 2**11, twice(dct) / 2**18)
    quality = torch.arange(101.0, dtype=torch.float64)[:, None, None, None]
    percent = torch.where(quality < 50, torch.floor(5000 / quality.clamp_min(1)), 200 - 2 * quality)
    tables = torch.floor((tables_of_50() * percent + 50) / 100).clamp(1, 255)
    # A little more than 1/8 turns ties away from zero. Eighths and steps being integers below 2^14
    # and 2^11, nothing else comes near enough to a tie to be turned.
    scales = torch.stack(((1 + 2**-16) / 8 / tables, tables), 2)
    # Luma is centred by its rounding; libjpeg rounds a chroma of .5 down.
    rounding = [[0.5 - 128], [32767 / 65536], [32767 / 65536]]
    return _Constants(
        Dct(*(constant(x, device) for x in factors)),
        constant(torch.tensor(_TO_YCC) / 65536, device),
        constant(torch.tensor(rounding), device),
        constant(torch.tensor(1 / 2), device),
        constant(torch.tensor(1 / 2 / 16), device),
        constant(scales, device),
    )


def _integer_codec(planes: Tensor, luma_rows: int, quality: Tensor, to: _Constants) -> Tensor:
    """Planes `[B, H, W]` of integers around 0, rows of luma above rows of chroma."""
    dct, scales = to.dct, to.scales.index_select(0, quality)
    x = runs_times(planes, dct.right, to.half).floor_()
    x = strips_times(x, dct.down, 8, to.half).floor_()
    strips = x.view(len(x), -1, 8, x.shape[-1])
    luma, chroma = strips[:, : luma_rows // 8], strips[:, luma_rows // 8 :]
    (luma_there, luma_back), (chroma_there, chroma_back) = (
        pair.unbind(1) for pair in tiled(scales, x.shape[-1])[:, :, :, None].unbind(1)
    )
    luma.mul_(luma_there)
    chroma.mul_(chroma_there)
    x.round_()
    luma.mul_(luma_back)
    chroma.mul_(chroma_back)
    x = strips_times(x, dct.up, 8, to.half).floor_()
    return runs_times(x, dct.back, to.half).floor_().clamp_(-128, 127)


@lru_cache(maxsize=1024)
def _chroma_rounding(width: int, device: torch.device) -> Tensor:
    """A quarter and a half in turn: of sums of four, libjpeg rounds 1 up in odd columns alone."""
    return sent(torch.tensor([0.25, 0.5], dtype=torch.float32).repeat(width // 2), device)


def _halved(chroma: Tensor, content: Content) -> Tensor:
    """Chroma `[B, 2, H, W]` at half its size with libjpeg's rounding, on whole blocks."""
    rows = chroma[..., ::2, :] + chroma[..., 1::2, :]
    half = rows[..., ::2] + rows[..., 1::2]
    height, width = half.shape[-2:]
    half = torch.add(_chroma_rounding(width, half.device), half, alpha=0.25).floor_()
    # libjpeg fills up the width before it halves the chroma, the height after.
    filled = Content((content.height + 1) // 2, (content.width + 15) // 16 * 8)
    return bordered(half, (whole(height, 8), width), filled)


def _doubled(half: Tensor, rounding: Tensor, content: Content, height: int, width: int) -> Tensor:
    """Triangle upsampling of integers, weights 9, 3, 3, 1, rounding as in libjpeg.

    The weights' sum is divided by 16 beforehand, and a sixteenth of the `rounding` added.
    """
    # The decoder knows the image's own size: its triangle filter never looks into the padding.
    height, width = (height + 1) // 2, (width + 1) // 2
    own = Content((content.height + 1) // 2, (content.width + 1) // 2)
    x = bordered(torch.add(rounding, half, alpha=1 / 16), (height, width), own, 1)
    even = torch.add(x[..., :-2], x[..., 1:-1], alpha=3)
    # Ties are rounded down in odd columns: 4 times 1/64 less.
    odd = torch.add(x[..., 2:], x[..., 1:-1], alpha=3).sub_(1 / 64)
    # Complex numbers lie in memory as the columns shall: faster than two strided copies.
    x = torch.view_as_real(torch.complex(even, odd)).flatten(-2)
    full = x.new_empty(*x.shape[:2], height, 2, 2 * width)
    torch.add(x[..., :-2, :], x[..., 1:-1, :], alpha=3, out=full[..., 0, :])
    torch.add(x[..., 2:, :], x[..., 1:-1, :], alpha=3, out=full[..., 1, :])
    return full.floor_().flatten(2, 3)


def libjpeg_codec(images: Tensor, quality: Tensor, content: Content) -> Tensor:
    """Images `[B, 3, H, W]` in [0, 1], qualities `[B]` best on the host; levels of 1/255."""
    to = _constants(images.device)
    batch, _, height, width = images.shape
    rows, columns = whole(height, 8), whole(width, 16)
    levels = bordered(images, (rows, columns), content).mul(255).round_()
    to_ycc = to.to_ycc.expand(batch, -1, -1)
    ycc = torch.baddbmm(to.ycc_rounding, to_ycc, levels.flatten(2)).view_as(levels)
    del levels
    half = _halved(ycc[:, 1:].floor_(), content)
    quality = sent(quality.float().round().long(), images.device)
    # Halved Cb and Cr, side by side, are as wide as luma: one plane for all.
    plane = images.new_empty(batch, rows + half.shape[-2], columns)
    torch.floor(ycc[:, 0], out=plane[:, :rows])
    plane[:, rows:].view(batch, -1, 2, columns // 2).copy_(half.transpose(1, 2))
    del ycc, half
    plane = _integer_codec(plane, rows, quality, to)
    y = plane[:, :height, :width].add_(128.5)
    half = plane[:, rows:].view(batch, -1, 2, columns // 2).transpose(1, 2)
    cb, cr = _doubled(half, to.half_of_16, content, height, width)[..., :height, :width].unbind(1)
    rgb = torch.empty_like(images, memory_format=torch.contiguous_format)
    red, green, blue = rgb.unbind(1)
    torch.add(y, cr, alpha=_RED_OF_CR, out=red)
    torch.add(y, cb, alpha=_GREEN_OF_CB, out=green).add_(cr, alpha=_GREEN_OF_CR)
    torch.add(y, cb, alpha=_BLUE_OF_CB, out=blue)
    return rgb.floor_().clamp_(0, 255).div_(255)
