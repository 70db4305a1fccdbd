"""The JPEG codec of published trainings, as BasicSR's DiffJPEG computes it.

Nothing but the coefficients is rounded, so halving and doubling the chroma's width are folded into
its DCT.

Source: described after BasicSR's DiffJPEG, its defects included.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlweight_sr.degradation.jpeg_blocks import (
    Content,
    Dct,
    constant,
    runs_times,
    strips_times,
    tables_of_50,
    tiled,
    twice,
)
from mtlweight_sr.degradation.precision import sent, sent_together

__all__ = ["basicsr_codec"]


class _Constants(NamedTuple):
    luma: Dct
    chroma: Dct
    to_ycc: Tensor
    centre: Tensor
    centre_back: Tensor
    to_rgb: Tensor
    tables: Tensor


@lru_cache(maxsize=8)
def _constants(device: torch.device) -> _Constants:
    k = torch.arange(8, dtype=torch.float64)
    dct = torch.cos(torch.outer(k, 2 * k + 1) * torch.pi / 16) / 2
    dct[0] /= 2**0.5
    pair = torch.ones(1, 2, dtype=torch.float64)
    halving = dct @ torch.kron(torch.eye(8, dtype=torch.float64), pair / 2)
    # Back from levels to [0, 1] with the last factor; chroma is repeated along the width by it.
    luma = (dct, twice(dct).T, dct.T, twice(dct) / 255)
    chroma = (halving, twice(halving).T, dct.T, twice(torch.kron(dct, pair)) / 255)
    to_ycc = [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
    to_rgb = [[0, 1.402], [-0.344136, -0.714136], [1.772, 0]]
    tables = tables_of_50()
    tables[0] = tables[0].T.clone()
    return _Constants(
        Dct(*(constant(x, device) for x in luma)),
        Dct(*(constant(x, device) for x in chroma)),
        constant(torch.tensor(to_ycc, dtype=torch.float32) * 255, device),
        constant(torch.tensor([[-128.0], [0.0], [0.0]]), device),
        constant(torch.tensor(128 / 255), device),
        constant(torch.tensor(to_rgb, dtype=torch.float32), device),
        constant(tables, device),
    )


def _real_codec(planes: Tensor, table: Tensor, dct: Dct, centre: Tensor | None = None) -> Tensor:
    x = runs_times(strips_times(planes, dct.down, dct.down.shape[1]), dct.right)
    table = tiled(table, x.shape[-1])[:, None]
    x.view(len(x), -1, 8, x.shape[-1]).div_(table).round_().mul_(table)
    return runs_times(strips_times(x, dct.up, 8), dct.back, centre)


def _blackened(images: Tensor, content: Content) -> Tensor:
    """Images on a canvas of whole pairs of blocks, black around their content."""
    height, width = content
    if isinstance(height, Tensor) and isinstance(width, Tensor):
        rows, columns = sent_together(
            [
                torch.arange(length) < content[:, None]
                for length, content in zip(images.shape[-2:], (height, width), strict=True)
            ],
            images.device,
        )
        inside = rows[:, None, :, None] & columns[:, None, None, :]
        images = torch.where(inside, images, 0.0)
    return F.pad(images, (0, -images.shape[-1] % 32, 0, -images.shape[-2] % 16))


def basicsr_codec(images: Tensor, quality: Tensor, content: Content) -> Tensor:
    """Images `[B, 3, H, W]` in [0, 1], qualities `[B]` best on the host; values in [0, 1]."""
    to = _constants(images.device)
    height, width = images.shape[-2:]
    x = _blackened(images, content)
    to_ycc = to.to_ycc.expand(len(x), -1, -1)
    ycc = torch.baddbmm(to.centre, to_ycc, x.flatten(2)).view_as(x)
    # Nearly zero, not zero, at quality 100.
    quality = quality.float()
    factor = torch.where(quality < 50, 50 / quality, (200 - 2 * quality) / 100).clamp_min(1e-4)
    factor = sent(factor, images.device)
    luma, chroma = (factor[:, None, None, None] * to.tables).unbind(1)
    y = _real_codec(ycc[:, 0], luma, to.luma, to.centre_back)
    c = _real_codec(ycc[:, 1:].flatten(0, 1), chroma.repeat_interleave(2, 0), to.chroma)
    rgb = torch.matmul(to.to_rgb, c.view(len(x), 2, -1)).view(len(x), 3, -1, 1, x.shape[-1])
    # Each row of chroma serves two of luma.
    rgb = rgb + y.view(len(x), 1, -1, 2, x.shape[-1])
    return rgb.clamp_(0, 1).view_as(x)[..., :height, :width].contiguous()
