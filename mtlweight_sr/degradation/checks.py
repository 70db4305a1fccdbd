"""What `degrade` refuses, before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from mtlweight_sr.degradation.parameters import DegradationParameters
from mtlweight_sr.degradation.poisson import Levels

__all__ = ["check_images", "check_options"]


def check_options(
    device: torch.device,
    generator: torch.Generator | None,
    compat: str | None,
    levels: str | int,
    buckets: int | None,
) -> None:
    """Raises ValueError for an option that is unknown, or does not go with another."""
    if generator is not None and generator.device.type != device.type:
        raise ValueError(
            f"expected `generator` on the device of `hr`, {device}, got one on {generator.device}; "
            f"write torch.Generator({str(device)!r})"
        )
    if compat not in (None, "realesrgan"):
        raise ValueError(
            f"expected `compat` None or 'realesrgan', got {compat!r}; write compat='realesrgan' "
            "for the operators of its published training"
        )
    if levels not in get_args(Levels):
        raise ValueError(
            f"expected `poisson_levels` among {get_args(Levels)}, got {levels!r}; write "
            "poisson_levels='auto'"
        )
    if compat is not None and levels != "auto":
        raise ValueError(
            f"expected `poisson_levels` 'auto' with `compat` {compat!r}, which counts levels, got "
            f"{levels!r}; leave one of the two out"
        )
    if buckets is not None and (type(buckets) is not int or buckets < 1):
        raise ValueError(f"expected `buckets` None or at least 1, got {buckets!r}; write buckets=2")


def check_images(hr: Tensor | Sequence[Tensor], parameters: DegradationParameters) -> torch.device:
    """The device of the images.

    Raises:
        TypeError: Images that are not float32.
        ValueError: Another shape, size, number of rows, device or range of values.
    """
    images = [hr] if isinstance(hr, Tensor) else list(hr)
    for image in images:
        _check_shape(image, isinstance(hr, Tensor))
    if len(hr) != len(parameters):
        raise ValueError(
            f"expected one row of `parameters` per image, got {len(parameters)} rows for "
            f"{len(hr)} images; draw them with as many ids"
        )
    for image in images:
        _check_pixels(image, parameters.scale)
    devices = {image.device for image in images}
    if len(devices) > 1:
        raise ValueError(
            f"expected `hr` on one device, got images on {sorted(map(str, devices))}; write "
            "image.to(device)"
        )
    return devices.pop() if devices else torch.device("cpu")


def _check_shape(image: Tensor, batched: bool) -> None:
    if image.dtype != torch.float32:
        raise TypeError(
            f"expected `hr` in float32, got {image.dtype}; write hr.float() / 255 for 8-bit images "
            "and hr.float() for others: levels of 1/255 vanish in half precision"
        )
    if batched and (image.ndim != 4 or image.shape[1] != 3):
        raise ValueError(
            f"expected `hr` of shape [B, 3, H, W], got {list(image.shape)}; write image[None] for "
            "a single RGB image"
        )
    if not batched and (image.ndim != 3 or image.shape[0] != 3):
        raise ValueError(
            f"expected a sequence `hr` of images [3, H, W], got one of {list(image.shape)}; write "
            "list(batch) for a batch"
        )


def _check_pixels(image: Tensor, scale: int) -> None:
    height, width = image.shape[-2:]
    if height % scale or width % scale or not height or not width:
        raise ValueError(
            f"expected `hr` with height and width divisible by the scale {scale}, got "
            f"{height}x{width}; write hr[..., :{max(height - height % scale, scale)}, "
            f":{max(width - width % scale, scale)}]"
        )
    if image.is_cpu and image.numel():
        low, high = (float(v) for v in image.aminmax())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"expected `hr` in [0, 1] without NaN, got values from {low:g} to {high:g}; write "
                "hr.clamp(0, 1), or hr / 255 for levels up to 255"
            )
