"""The degradation of a batch: HR images and parameters in, LR images out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeGuard, overload

import torch
from torch import Tensor

from mtlweight_sr.degradation.batching import Canvas, buckets_of, gathered, merged, portions
from mtlweight_sr.degradation.checks import check_images, check_options
from mtlweight_sr.degradation.memory import keep_freed_memory
from mtlweight_sr.degradation.parameters import DegradationParameters
from mtlweight_sr.degradation.poisson import Levels
from mtlweight_sr.degradation.precision import full_precision
from mtlweight_sr.degradation.resize import Size, scaled_size
from mtlweight_sr.degradation.stages import Stages

__all__ = ["Compat", "degrade"]

Compat = Literal["realesrgan"]
"""Whose operators may be reproduced, defects included."""

# What a row needs on an accelerator, in canvases with a margin: as an HR image while it is blurred,
# and after the first resize while noise is added.
_MARGIN = 4
_WORK = 5.25, 7.5


@overload
def degrade(
    hr: Tensor,
    parameters: DegradationParameters,
    *,
    generator: torch.Generator | None = ...,
    compat: Compat | None = ...,
    poisson_levels: Levels = ...,
    buckets: int | None = ...,
) -> Tensor: ...


@overload
def degrade(
    hr: Sequence[Tensor],
    parameters: DegradationParameters,
    *,
    generator: torch.Generator | None = ...,
    compat: Compat | None = ...,
    poisson_levels: Levels = ...,
    buckets: int | None = ...,
) -> list[Tensor]: ...


@torch.no_grad()
def degrade(
    hr: Tensor | Sequence[Tensor],
    parameters: DegradationParameters,
    *,
    generator: torch.Generator | None = None,
    compat: Compat | None = None,
    poisson_levels: Levels = "auto",
    buckets: int | None = None,
) -> Tensor | list[Tensor]:
    """Degrade HR images into LR images, each by its own row of parameters.

    In order: blur, resize, noise, JPEG; blur, resize relative to the LR size, noise; then the
    resize to LR size with the final sinc filter before or after the second JPEG; rounding to 8-bit
    levels. Every choice is made per sample.

    The function is pure: without a `generator`, noise is drawn by generators seeded by
    `parameters.seed`. On a CPU a sample has the same bits alone and inside any batch; on an
    accelerator, which works on many rows at once, its noise depends on the rows beside it.
    Sharpening (`usm_sharpen`) and cropping (`crop_pair`) are the caller's. An accelerator is never
    waited for.

    Args:
        hr: `[B, 3, H, W]` float32 in [0, 1] on any device, or a sequence of B images `[3, H, W]` of
            any sizes; heights and widths divisible by `parameters.scale`. Values are checked on the
            CPU only, since looking at them would make an accelerator wait.
        parameters: One row per image; best left on the CPU.
        generator: Draws all noise from one generator of hr's device instead: on a CPU in batch
            order, on an accelerator bucket by bucket.
        compat: None corrects what is wrong in Real-ESRGAN's published training: its JPEG codec uses
            the luma table transposed, pads with black, and repeats chroma and keeps real-valued
            qualities where image files have smooth chroma and integer tables; its gray Gaussian
            noise is one field for the whole batch. "realesrgan" takes that codec as it is; fields
            stay each sample's own.
        poisson_levels: As `levels` in `add_noise`; "auto" counts them, as Real-ESRGAN does.
        buckets: In how many groups of similar size rows are worked on. None: on a CPU one for each
            row up to the second noise, since what follows is small; on an accelerator as few as
            hold no more than three times the memory of `hr` (a batch of few images may need more).

    Returns:
        `[B, 3, H / scale, W / scale]` float32 in [0, 1], multiples of 1/255, on hr's device; for a
        sequence a list of such images.

    Raises:
        TypeError: `hr` is not float32.
        ValueError: Another shape, size, number of rows, range of values, or unknown option.

    Source: Wang et al., Real-ESRGAN (2021), section 3; per-sample choices and noise are ours.
    """
    device = check_images(hr, parameters)
    check_options(device, generator, compat, poisson_levels, buckets)
    scale = parameters.scale
    sizes = [(image.shape[-2], image.shape[-1]) for image in hr]
    if not sizes:
        return hr.new_empty(0, 3, *(n // scale for n in hr.shape[-2:])) if _batched(hr) else []
    stages = Stages.of(
        parameters.to("cpu"),
        [(height // scale, width // scale) for height, width in sizes],
        generator,
        "libjpeg" if compat is None else "basicsr",
        poisson_levels,
    )
    with torch.autocast(device.type, enabled=False), full_precision(device):
        if buckets is None and hr[0].is_cpu:
            keep_freed_memory()
            late = [max(pair) for pair in zip(stages.lr_sizes, stages.late_sizes, strict=True)]
            done = [_degraded(hr, [[i] for i in rows], stages) for rows in portions(late)]
        else:
            done = [_degraded(hr, _buckets(sizes, stages, buckets), stages)]
    if _batched(hr):
        return torch.cat([x.images for x in done]) if len(done) > 1 else done[0].images
    return [image for x in done for image in x.contents()]


def _batched(hr: Tensor | Sequence[Tensor]) -> TypeGuard[Tensor]:
    return isinstance(hr, Tensor)


def _buckets(sizes: list[Size], stages: Stages, count: int | None) -> list[list[int]]:
    costs = []
    for size, factor in zip(sizes, stages.columns[0].factor, strict=True):
        canvases = zip(_WORK, (size, scaled_size(size, factor)), strict=True)
        costs.append(max(work * (h + 2 * _MARGIN) * (w + 2 * _MARGIN) for work, (h, w) in canvases))
    return buckets_of(costs, 3 * sum(height * width for height, width in sizes), count)


def _degraded(hr: Tensor | Sequence[Tensor], buckets: list[list[int]], stages: Stages) -> Canvas:
    """The LR images of the buckets' rows, in increasing order."""
    parts = []
    for bucket in buckets:
        rows = sorted(bucket, key=lambda i: not stages.before_jpeg[i])
        x = stages.first(gathered(hr, rows), rows)
        count = sum(stages.before_jpeg[i] for i in rows)
        if 0 < count < len(rows):
            parts += [(x[:count], rows[:count]), (x[count:], rows[count:])]
        else:
            parts.append((x, rows))
    # Rows that end with JPEG come first.
    parts.sort(key=lambda part: not stages.before_jpeg[part[1][0]])
    order = [i for _, rows in parts for i in rows]
    x = stages.second(merged([x for x, _ in parts]), order)
    return x.rows(sorted(range(len(order)), key=order.__getitem__))
