"""What both JPEG codecs are built of: the tables, products with 8x8 blocks, repeated borders.

Planes stay as they are, rows of pixels: the DCT along the height is a product with the 8 rows of a
strip from the left, the one along the width a product with 16 pixels from the right.

Source: ITU-T T.81, annexes A and K.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlweight_sr.degradation.precision import sent, sent_together
from mtlweight_sr.degradation.resize import Size

__all__ = [
    "Content",
    "Dct",
    "bordered",
    "constant",
    "runs_times",
    "strips_times",
    "tables_of_50",
    "tiled",
    "twice",
    "whole",
]

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


class Dct(NamedTuple):
    """Factors of a transform: `down @ strip` and `pixels @ right` there, `up` and `back` back."""

    down: Tensor
    right: Tensor
    up: Tensor
    back: Tensor


def twice(matrix: Tensor) -> Tensor:
    """Two blocks side by side: products with fewer than 16 columns are slow."""
    return torch.kron(torch.eye(2, dtype=matrix.dtype), matrix)


def constant(values: Tensor, device: torch.device) -> Tensor:
    """A table in float32 on a device, rows in order."""
    return sent(values.float().contiguous(), device)


def tables_of_50() -> Tensor:
    """Tables of quality 50, `[2, 8, 8]` float64: luma and chroma, rows vertical."""
    chroma = torch.full((8, 8), 99.0, dtype=torch.float64)
    chroma[:4, :4] = torch.tensor(_CHROMA_CORNER)
    return torch.stack((torch.tensor(_LUMA).double(), chroma))


def whole(x: int, multiple: int) -> int:
    """The next multiple."""
    return x + -x % multiple


class Content(NamedTuple):
    """Height and width of the content: of all images, or `[B]` each on the host."""

    height: int | Tensor
    width: int | Tensor


def _nearest(length: int, content: Tensor, margin: int) -> Tensor:
    """For each of the places with a margin, `[B, length + 2 margin]`, the nearest with content."""
    places = torch.arange(-margin, length + margin).clamp_min_(0)
    return places.minimum(content[:, None] - 1)


def bordered(x: Tensor, canvas: Size, content: Content, margin: int = 0) -> Tensor:
    """Images on another canvas and with a margin, their border repeated all around the content."""
    height, width = content
    if isinstance(height, int) and isinstance(width, int):
        if not margin and canvas == (height, width):
            return x
        ends = margin, margin + canvas[1] - width, margin, margin + canvas[0] - height
        return F.pad(x[..., :height, :width], ends, mode="replicate")
    if x.is_cpu:
        own = zip(torch.as_tensor(height).tolist(), torch.as_tensor(width).tolist(), strict=True)
        parts = zip(x, map(Content._make, own), strict=True)
        return torch.stack([bordered(image, canvas, one, margin) for image, one in parts])
    rows, columns, image, channel = sent_together(
        [
            _nearest(canvas[0], torch.as_tensor(height), margin)[:, None, :, None],
            _nearest(canvas[1], torch.as_tensor(width), margin)[:, None, None, :],
            torch.arange(x.shape[0])[:, None, None, None],
            torch.arange(x.shape[1])[:, None, None],
        ],
        x.device,
    )
    return x[image, channel, rows, columns]


def strips_times(x: Tensor, factor: Tensor, height: int, plus: Tensor | None = None) -> Tensor:
    """Every strip of `height` rows of the planes `[N, H, W]` multiplied from the left.

    What is added to every value, `[]`, costs less inside the product than after it.
    """
    strips = x.reshape(-1, height, x.shape[-1])
    factor = factor.expand(len(strips), -1, -1)
    product = torch.bmm(factor, strips) if plus is None else torch.baddbmm(plus, factor, strips)
    return product.view(len(x), -1, x.shape[-1])


def runs_times(x: Tensor, factor: Tensor, plus: Tensor | None = None) -> Tensor:
    """Every run of pixels of the planes `[N, H, W]` multiplied from the right, and `plus` added."""
    runs = x.reshape(-1, len(factor))
    product = torch.mm(runs, factor) if plus is None else torch.addmm(plus, runs, factor)
    return product.view(*x.shape[:-1], -1)


def tiled(table: Tensor, width: int) -> Tensor:
    """Tables `[..., 8, 8]` side by side, `[..., 8, width]`: short rows are slow to broadcast."""
    return table.unsqueeze(-2).expand(*table.shape[:-1], width // 8, 8).flatten(-2)
