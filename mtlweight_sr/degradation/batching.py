"""Rows of different sizes in one tensor, and which rows are worked on together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlweight_sr.degradation.precision import sent
from mtlweight_sr.degradation.resize import Size

__all__ = ["Canvas", "buckets_of", "gathered", "merged", "portions"]

# Pixels of the images that a CPU works on together: their planes stay in its cache.
_TOGETHER = 2**16


@dataclass(frozen=True)
class Canvas:
    """Images of different sizes in one tensor.

    Attributes:
        images: `[B, C, H, W]`; the content of a row lies in its upper left corner, what is outside
            is finite and never read.
        sizes: Height and width of each row's content.
    """

    images: Tensor
    sizes: list[Size]

    @cached_property
    def ragged(self) -> list[Size] | None:
        """The sizes, None where every row fills the canvas."""
        shape = tuple(self.images.shape[-2:])
        return None if all(size == shape for size in self.sizes) else self.sizes

    def of(self, images: Tensor) -> Canvas:
        """Other images of the same sizes."""
        return self if images is self.images else Canvas(images, self.sizes)

    def clamped(self) -> Canvas:
        """The images cut off at 0 and 1."""
        return Canvas(self.images.clamp(0, 1), self.sizes)

    def __getitem__(self, rows: slice) -> Canvas:
        """Some rows, on a canvas no larger than they need."""
        sizes = self.sizes[rows]
        height, width = _largest(sizes) if sizes else (0, 0)
        return Canvas(self.images[rows, :, :height, :width], sizes)

    def rows(self, rows: list[int]) -> Canvas:
        """Some rows, in the order given."""
        if rows == list(range(len(self.sizes))):
            return self
        index = sent(torch.tensor(rows), self.images.device)
        return Canvas(self.images.index_select(0, index), [self.sizes[i] for i in rows])

    def contents(self) -> list[Tensor]:
        """The images without what is around them, `[C, h, w]` each."""
        return [
            image[:, :height, :width]
            for image, (height, width) in zip(self.images, self.sizes, strict=True)
        ]


def _largest(sizes: Sequence[Size]) -> Size:
    return max(height for height, _ in sizes), max(width for _, width in sizes)


def merged(parts: Sequence[Canvas]) -> Canvas:
    """The rows of several canvases, in order, on one that holds them all."""
    if len(parts) == 1:
        return parts[0]
    sizes = [size for part in parts for size in part.sizes]
    height, width = _largest(sizes)
    padded = [
        F.pad(part.images, (0, width - part.images.shape[-1], 0, height - part.images.shape[-2]))
        for part in parts
    ]
    return Canvas(torch.cat(padded), sizes)


def gathered(images: Tensor | Sequence[Tensor], rows: list[int]) -> Canvas:
    """Rows of a batch `[B, C, H, W]`, or of a sequence of images `[C, H, W]` of any sizes."""
    if isinstance(images, Tensor):
        size = (images.shape[-2], images.shape[-1])
        if len(rows) == 1:
            return Canvas(images[rows[0] : rows[0] + 1], [size])
        return Canvas(images, [size] * len(images)).rows(rows)
    return merged(
        [Canvas(images[i][None], [(images[i].shape[-2], images[i].shape[-1])]) for i in rows]
    )


def buckets_of(costs: Sequence[float], limit: float, count: int | None = None) -> list[list[int]]:
    """The rows in groups of similar size, largest rows first.

    Args:
        costs: What each row costs on a canvas of its own size.
        limit: Rows times the largest cost of a bucket stays below it, unless a single row exceeds
            it. Of the ways with the fewest buckets, the one whose largest is smallest is taken.
        count: How many buckets of equally many rows instead, if given.
    """
    rows = sorted(range(len(costs)), key=lambda i: -costs[i])
    if count is not None:
        share = -(-len(rows) // min(count, len(rows)))
        return [rows[at : at + share] for at in range(0, len(rows), share)]
    fewest = _filled(rows, costs, limit)
    low, high = 0.0, limit
    for _ in range(10):
        middle = (low + high) / 2
        if len(_filled(rows, costs, middle)) == len(fewest):
            high = middle
        else:
            low = middle
    return _filled(rows, costs, high)


def portions(sizes: Sequence[Size]) -> list[list[int]]:
    """Rows next to each other that a CPU works on together, large ones alone."""
    return _filled(range(len(sizes)), [height * width for height, width in sizes], _TOGETHER)


def _filled(rows: Sequence[int], costs: Sequence[float], limit: float) -> list[list[int]]:
    buckets: list[list[int]] = []
    largest = 0.0
    for row in rows:
        largest = max(largest, costs[row])
        if buckets and (len(buckets[-1]) + 1) * largest <= limit:
            buckets[-1].append(row)
        else:
            buckets.append([row])
            largest = costs[row]
    return buckets
