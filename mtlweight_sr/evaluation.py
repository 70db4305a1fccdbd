"""The metrics of a network on a fixed validation set, task by task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlweight_sr.metrics import psnr_y, quantize, ssim_y
from mtlweight_sr.validation import ValidationSet

__all__ = ["Scores", "batches", "bicubic", "evaluate", "evaluate_perceptual"]

Upscaler = Callable[[Tensor], Tensor]
"""Maps `[B, 3, h, w]` in [0, 1] to `[B, 3, scale * h, scale * w]`."""


class Scores(NamedTuple):
    """Means over the images of one task."""

    psnr: float
    """PSNR of the luma in dB."""
    ssim: float
    """SSIM of the luma."""


def bicubic(scale: int) -> Upscaler:
    """Returns the bicubic enlargement, clamped to [0, 1]: what every network has to beat."""

    def enlarge(images: Tensor) -> Tensor:
        enlarged = F.interpolate(images, scale_factor=scale, mode="bicubic", align_corners=False)
        return enlarged.clamp(0, 1)

    return enlarge


def batches(
    validation: ValidationSet, task: str, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the pairs of a task, neighbours of one size together, at most `batch_size` at once."""
    gathered: list[tuple[Tensor, Tensor]] = []
    for pair in validation.iterate(task):
        if gathered and (len(gathered) == batch_size or pair[1].shape != gathered[0][1].shape):
            yield _joined(gathered)
            gathered = []
        gathered.append(pair)
    if gathered:
        yield _joined(gathered)


def _joined(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([lr for lr, _ in pairs]), torch.cat([hr for _, hr in pairs])


@torch.no_grad()
def evaluate(
    upscaler: Upscaler,
    validation: ValidationSet,
    tasks: Sequence[str],
    *,
    device: torch.device,
    batch_size: int = 8,
    between: Callable[[], None] | None = None,
) -> dict[str, Scores]:
    """PSNR-Y and SSIM-Y per task, with a border of the scale left out.

    Args:
        upscaler: a network in evaluation mode, or any other way to enlarge images.
        validation: the pairs.
        tasks: names of the tasks to measure.
        device: where the upscaler runs.
        batch_size: images at once.
        between: called before every batch, where a long validation may be stopped.

    Raises:
        ValueError: the set has no such task.
    """
    scores = {}
    for task in tasks:
        psnr: list[float] = []
        ssim: list[float] = []
        for lr, hr in batches(validation, task, batch_size):
            if between is not None:
                between()
            sr, hr = upscaler(lr.to(device)).float(), hr.to(device)
            psnr += psnr_y(sr, hr, validation.scale).tolist()
            ssim += ssim_y(sr, hr, validation.scale).tolist()
        scores[task] = Scores(sum(psnr) / len(psnr), sum(ssim) / len(ssim))
    return scores


@torch.no_grad()
def evaluate_perceptual(
    upscaler: Upscaler,
    distance: Callable[[Tensor, Tensor], Tensor],
    validation: ValidationSet,
    tasks: Sequence[str],
    *,
    device: torch.device,
    batch_size: int = 8,
) -> dict[str, float]:
    """The mean perceptual distance per task between the images as 8-bit files would hold them.

    Args:
        upscaler: a network in evaluation mode, or any other way to enlarge images.
        distance: a `PerceptualDistance` on `device`.
        validation: the pairs.
        tasks: names of the tasks to measure.
        device: where both run.
        batch_size: images at once.
    """
    means = {}
    for task in tasks:
        values: list[float] = []
        for lr, hr in batches(validation, task, batch_size):
            sr = quantize(upscaler(lr.to(device)).float()).float()
            values += distance(sr, hr.to(device)).tolist()
        means[task] = sum(values) / len(values)
    return means
