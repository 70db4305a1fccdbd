r"""Resizing without antialiasing, by factors or to sizes, each image its own.

Without antialiasing an output sample reads a few neighbouring inputs per axis: a bin (area), two
(bilinear) or four (bicubic). The host computes which they are and what they weigh.

- A CPU resizes images one by one, large ones axis by axis: whole rows are added up, as in a product
  with a sparse matrix, and columns are put upright for it.
- An accelerator resizes all at once, as two matrix products $R_h X R_w^\top$.

Bilinear and small images of a CPU, and on an accelerator images that are all alike, are left to
`torch.nn.functional.interpolate`; others differ from what it gives by rounding, 1e-6 of [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mtlweight_sr.degradation.precision import full_precision
from mtlweight_sr.degradation.space import MODES
from mtlweight_sr.degradation.windows import matrices, windows

__all__ = ["Size", "check_sizes", "resize_by", "resize_to", "scaled_size"]

T = TypeVar("T")

# Pixels of a result from which on windows pay; they never do for the few taps of bilinear ones.
_MANY = 2**14

Size = tuple[int, int]
"""Height and width."""


def check_sizes(images: Tensor, sizes: Sequence[Size] | None) -> None:
    """Refuse sizes that are not one per image or do not fit the canvas `[B, C, H, W]`.

    Raises:
        ValueError: Another number of sizes, or one outside the canvas.
    """
    if sizes is None:
        return
    if len(sizes) != len(images):
        raise ValueError(
            f"expected one of `sizes` per image, got {len(sizes)} for {len(images)} images; write "
            "(height, width) for every row"
        )
    height, width = images.shape[-2:]
    for size in sizes:
        if not (1 <= size[0] <= height and 1 <= size[1] <= width):
            raise ValueError(
                f"expected `sizes` from 1x1 to the canvas of {height}x{width}, got "
                f"{size[0]}x{size[1]}; write the size of each image's content"
            )


def _each(images: Tensor, name: str, values: Sequence[T]) -> Sequence[T]:
    if (got := len(values)) != len(images):
        raise ValueError(
            f"expected one `{name}` for all or one per image, got {got} for {len(images)} images"
        )
    return values


def _modes(images: Tensor, mode: str | Sequence[str]) -> Sequence[str]:
    modes = [mode] * len(images) if isinstance(mode, str) else _each(images, "mode", mode)
    for one in {mode} if isinstance(mode, str) else set(modes):
        if one not in MODES:
            raise ValueError(f"expected `mode` among {MODES}, got {one!r}; write mode='bicubic'")
    return modes


def scaled_size(size: Size, factor: float) -> Size:
    """What `resize_by` makes of a size: rounded down, at least 1x1."""
    return max(1, math.floor(size[0] * factor)), max(1, math.floor(size[1] * factor))


class _Plan(NamedTuple):
    """One resize; the factor, where there is one, sets the step between samples."""

    size: Size
    target: Size
    mode: str
    factor: float | None

    def step(self, axis: int) -> float:
        """Between samples along one axis."""
        size, target = self.size[axis], self.target[axis]
        if self.mode == "bilinear" and size == target:
            return 1.0  # torch leaves such an axis alone, whatever the factor
        return size / target if self.factor is None else 1 / self.factor

    def changes(self) -> bool:
        """Whether there is anything to do."""
        return self.factor != 1 and (self.factor is not None or self.size != self.target)

    def apply(self, images: Tensor) -> Tensor:
        """Images `[B, C, h, w]` that fill their canvas, by torch's own operator."""
        if not self.changes():
            return images
        how = {"size": self.target} if self.factor is None else {"scale_factor": self.factor}
        align = None if self.mode == "area" else False
        return F.interpolate(images, mode=self.mode, align_corners=align, **how)

    def along(self, axis: int, planes: Tensor) -> Tensor:
        """Planes `[C, h, w]` whose rows are added up as the given axis asks for."""
        count, size, width = planes.shape
        places, weights = windows(self.mode, size, self.target[axis], self.step(axis))
        every = torch.from_numpy(np.concatenate([places + n * size for n in range(count)]))
        weight = torch.from_numpy(weights).to(planes.dtype).repeat(count, 1)
        rows = planes.reshape(-1, width)
        rows = F.embedding_bag(every, rows, mode="sum", per_sample_weights=weight)
        return rows.view(count, -1, width)

    def alone(self, image: Tensor) -> Tensor:
        """An image `[1, C, h, w]` that fills its canvas, on a CPU."""
        if self.mode == "bilinear" or math.prod(self.target) < _MANY or not self.changes():
            return self.apply(image.contiguous())
        # The columns are put upright while they are short.
        if self.target[0] < self.size[0]:
            planes = self.along(0, image[0]).mT.contiguous()
            return self.along(1, planes).mT.contiguous()[None]
        planes = self.along(1, image[0].mT.contiguous()).mT.contiguous()
        return self.along(0, planes)[None]


def _together(images: Tensor, plans: Sequence[_Plan]) -> Tensor:
    """All images at once: nothing here waits for the device."""
    batch, channels, height, width = images.shape
    down, right = matrices(
        [plan.size for plan in plans],
        [plan.target for plan in plans],
        [(plan.step(0), plan.step(1)) for plan in plans],
        [MODES.index(plan.mode) for plan in plans],
        (height, width),
        images.device,
    )
    with full_precision(images.device):
        x = torch.bmm(images.reshape(batch, -1, width), right.mT)
        x = x.view(batch, channels, height, -1)
        # One channel at a time into its place: a stack would hold all of them twice.
        out = x.new_empty(batch, channels, down.shape[1], x.shape[-1])
        for c in range(channels):
            out[:, c] = torch.bmm(down, x[:, c])
        return out


def _one_by_one(images: Tensor, plans: Sequence[_Plan]) -> Tensor:
    height, width = (max(plan.target[axis] for plan in plans) for axis in (0, 1))
    parts = [
        plan.alone(images[i : i + 1, :, : plan.size[0], : plan.size[1]])
        for i, plan in enumerate(plans)
    ]
    if all(plan.target == (height, width) for plan in plans):
        return torch.cat(parts) if len(parts) > 1 else parts[0]
    result = images.new_zeros(*images.shape[:2], height, width)
    for i, part in enumerate(parts):
        result[i : i + 1, :, : part.shape[2], : part.shape[3]] = part
    return result


def _resized(images: Tensor, plans: Sequence[_Plan]) -> Tensor:
    if not plans:
        raise ValueError("expected at least one image in `images`, got none")
    if images.is_cpu:
        return _one_by_one(images, plans)
    if plans.count(plans[0]) == len(plans) and plans[0].size == images.shape[-2:]:
        return plans[0].apply(images)
    return _together(images, plans)


def _contents(images: Tensor, sizes: Sequence[Size] | None) -> Sequence[Size]:
    check_sizes(images, sizes)
    return sizes or [(images.shape[-2], images.shape[-1])] * len(images)


def resize_by(
    images: Tensor,
    factor: float | Sequence[float],
    mode: str | Sequence[str],
    sizes: Sequence[Size] | None = None,
) -> Tensor:
    """Resize by factors: sizes are rounded down, the step between samples is exactly 1/factor.

    Args:
        images: `[B, C, H, W]`, at least one.
        factor: Positive, for all or one per image; 1 leaves an image as it is.
        mode: One of `MODES`, for all or one per image. Area averages adaptive bins, bicubic uses
            a = -0.75; neither bilinear nor bicubic smooths before it samples.
        sizes: Height and width of each image, in the upper left corner of its canvas; what is
            outside is finite and of no effect. None: images fill the canvas.

    Returns:
        `[B, C, H', W']`, as large as the largest result; image i has `scaled_size(sizes[i],
        factor[i])`, zeros around it.

    Raises:
        ValueError: An unknown mode, a factor that is not positive, wrong sizes, or another number
            of any than of images.
    """
    factors = (
        _each(images, "factor", factor) if isinstance(factor, Sequence) else [factor] * len(images)
    )
    for one in factors:
        if not 0 < one < math.inf:
            raise ValueError(f"expected a positive `factor`, got {one}; write for example 0.5")
    plans = []
    rows = zip(_contents(images, sizes), factors, _modes(images, mode), strict=True)
    for (height, width), one, name in rows:
        # A side that would vanish becomes one pixel; no factor leads there.
        kept = min(math.floor(height * one), math.floor(width * one)) >= 1
        target = scaled_size((height, width), one)
        plans.append(_Plan((height, width), target, name, one if kept else None))
    return _resized(images, plans)


def resize_to(
    images: Tensor,
    size: Size | Sequence[Size],
    mode: str | Sequence[str],
    sizes: Sequence[Size] | None = None,
) -> Tensor:
    """Resize to sizes: the step between samples is the ratio of the sizes.

    Args:
        images: `[B, C, H, W]`, at least one.
        size: Height and width to reach, for all or one per image.
        mode: One of `MODES`, for all or one per image, as in `resize_by`.
        sizes: As in `resize_by`.

    Returns:
        `[B, C, H', W']`, as large as the largest result; image i has `size[i]`, zeros around it.

    Raises:
        ValueError: An unknown mode, wrong sizes, or another number of any than of images.
    """
    alike = isinstance(size[0], int)
    targets = cast(Sequence[Size], [size] * len(images) if alike else _each(images, "size", size))
    plans = []
    rows = zip(_contents(images, sizes), targets, _modes(images, mode), strict=True)
    for before, (height, width), name in rows:
        if min(height, width) < 1:
            raise ValueError(f"expected `size` of at least 1x1, got {height}x{width}")
        plans.append(_Plan((before[0], before[1]), (height, width), name, None))
    return _resized(images, plans)
