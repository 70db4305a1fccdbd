"""The degradation of a batch: HR images and parameters in, LR images out."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from mtlweight_sr.degradation.blur import blur
from mtlweight_sr.degradation.columns import NOISE_TYPES
from mtlweight_sr.degradation.jpeg import JpegMode, jpeg
from mtlweight_sr.degradation.kernels import SIZE, stage_kernels
from mtlweight_sr.degradation.noise import gaussian_noise, poisson_noise
from mtlweight_sr.degradation.parameters import (
    DegradationParameters,
    FinalParameters,
    StageParameters,
)
from mtlweight_sr.degradation.resize import resize_by, resize_to
from mtlweight_sr.degradation.space import MODES

__all__ = ["degrade"]

Levels = Literal["auto", 256]


def _check_options(
    device: torch.device, generator: torch.Generator | None, mode: str, levels: str | int
) -> None:
    if generator is not None and generator.device.type != device.type:
        raise ValueError(
            f"expected `generator` on the device of `hr`, {device}, got one on {generator.device}; "
            f"write torch.Generator({str(device)!r})"
        )
    for name, value, known in (
        ("jpeg", mode, get_args(JpegMode)),
        ("poisson_levels", levels, get_args(Levels)),
    ):
        if value not in known:
            raise ValueError(
                f"expected `{name}` among {known}, got {value!r}; write {name}={known[0]!r}"
            )


def _check(hr: Tensor, parameters: DegradationParameters) -> None:
    if hr.dtype != torch.float32:
        raise TypeError(
            f"expected `hr` in float32, got {hr.dtype}; write hr.float() / 255 for 8-bit images "
            "and hr.float() for others: levels of 1/255 vanish in half precision"
        )
    if hr.ndim != 4 or hr.shape[1] != 3:
        raise ValueError(
            f"expected `hr` of shape [B, 3, H, W], got {list(hr.shape)}; write image[None] for a "
            "single RGB image"
        )
    if hr.shape[0] != len(parameters):
        raise ValueError(
            f"expected one row of `parameters` per image, got {len(parameters)} rows for "
            f"{hr.shape[0]} images; draw them with as many ids"
        )
    height, width = hr.shape[-2:]
    scale = parameters.scale
    if height % scale or width % scale or not height or not width:
        raise ValueError(
            f"expected `hr` with height and width divisible by the scale {scale}, got "
            f"{height}x{width}; write hr[..., :{max(height - height % scale, scale)}, "
            f":{max(width - width % scale, scale)}]"
        )
    if hr.device.type == "cpu" and hr.numel():
        low, high = (float(v) for v in hr.aminmax())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"expected `hr` in [0, 1] without NaN, got values from {low:g} to {high:g}; write "
                "hr.clamp(0, 1), or hr / 255 for levels up to 255"
            )


class _Fields:
    """Where the noise of each row and stage comes from."""

    def __init__(
        self, seeds: Tensor, device: torch.device, generator: torch.Generator | None
    ) -> None:
        self.seeds = seeds.tolist()
        self.device = device
        self.generator = generator

    def of(self, row: int, stage: int) -> torch.Generator:
        if self.generator is not None:
            return self.generator
        # One generator per stage: what the first stage draws never shifts the second. CPU
        # generators read the low 32 bits alone, hence both halves of the key are folded into them.
        key = self.seeds[row]
        folded = (key ^ key >> 32 ^ stage * 0x9E3779B9) & 0xFFFFFFFF
        return torch.Generator(self.device).manual_seed(folded | (key >> 32 << 32))


def _blurred(image: Tensor, kernel: Tensor, size: int) -> Tensor:
    # The canvas is zero outside the kernel's own size; leaving that out changes nothing but the
    # cost.
    margin = (SIZE - size) // 2
    return blur(image, kernel[None, margin : SIZE - margin, margin : SIZE - margin])


def _noisy(
    image: Tensor, stage: StageParameters, i: int, levels: Levels, fields: _Fields, number: int
) -> Tensor:
    kind = NOISE_TYPES[int(stage.noise_type[i])]
    if kind == "none":
        return image.clamp(0, 1)
    strength, gray = stage.noise_strength[i : i + 1], stage.gray_noise[i : i + 1]
    generator = fields.of(i, number)
    noise = (
        gaussian_noise(image, strength, gray, generator=generator)
        if kind == "gaussian"
        else poisson_noise(image, strength, gray, levels=levels, generator=generator)
    )
    return (image + noise).clamp(0, 1)


def _compressed(image: Tensor, stage: StageParameters, i: int, mode: JpegMode) -> Tensor:
    return jpeg(image, stage.jpeg_quality[i : i + 1], mode) if stage.jpeg[i] else image


def _finished(
    image: Tensor, final: FinalParameters, kernel: Tensor, i: int, size: tuple[int, int]
) -> Tensor:
    image = resize_to(image, size, MODES[int(final.resize_mode[i])])
    return _blurred(image, kernel, int(final.kernel_size[i])) if final.sinc[i] else image


@torch.no_grad()
def degrade(
    hr: Tensor,
    parameters: DegradationParameters,
    *,
    generator: torch.Generator | None = None,
    jpeg: JpegMode = "libjpeg",
    poisson_levels: Levels = "auto",
) -> Tensor:
    """Degrade HR images into LR images, each by its own row of parameters.

    In order: blur, resize, noise, JPEG; blur, resize relative to the LR size, noise; then the
    resize to LR size with the final sinc filter before or after the second JPEG; rounding to 8-bit
    levels. Every choice is made per sample.

    The function is pure: without a `generator`, each sample's noise comes from generators seeded by
    its own `parameters.seed`, so a sample has the same bits alone and inside any batch (on one kind
    of device; devices have different generators). Sharpening (`usm_sharpen`) and cropping are the
    caller's.

    Args:
        hr: `[B, 3, H, W]` float32 in [0, 1] on any device, H and W divisible by `parameters.scale`.
            Values are checked on the CPU only, since looking at them would make an accelerator
            wait.
        parameters: One row per image; best left on the CPU.
        generator: Draws all noise from one generator of hr's device instead, in batch order.
        jpeg: "libjpeg" for the codec of image files, "basicsr" for that of Real-ESRGAN's training.
        poisson_levels: As `levels` in `poisson_noise`.

    Returns:
        `[B, 3, H / scale, W / scale]` float32 in [0, 1], multiples of 1/255, on hr's device.

    Raises:
        TypeError: `hr` is not float32.
        ValueError: Another shape, size, number of rows, range of values, or unknown option.

    Source: Wang et al., Real-ESRGAN (2021), section 3; per-sample choices and noise are ours.
    """
    _check(hr, parameters)
    _check_options(hr.device, generator, jpeg, poisson_levels)
    scale = parameters.scale
    height, width = hr.shape[-2] // scale, hr.shape[-1] // scale
    rows = parameters.to("cpu")
    first, second, final = rows.first, rows.second, rows.final
    kernels = [
        stage_kernels(stage, dtype=torch.float64).to(hr.device, torch.float32)
        for stage in (first, second, final)
    ]
    fields = _Fields(rows.seed, hr.device, generator)
    results = []
    with torch.autocast(hr.device.type, enabled=False):
        for i in range(len(rows)):
            x = hr[i : i + 1]
            if first.blur[i]:
                x = _blurred(x, kernels[0][i], int(first.kernel_size[i]))
            x = resize_by(x, float(first.resize_scale[i]), MODES[int(first.resize_mode[i])])
            x = _noisy(x, first, i, poisson_levels, fields, 1)
            x = _compressed(x, first, i, jpeg)
            if second.blur[i]:
                x = _blurred(x, kernels[1][i], int(second.kernel_size[i]))
            factor = float(second.resize_scale[i])
            size = max(1, math.floor(height * factor)), max(1, math.floor(width * factor))
            x = resize_to(x, size, MODES[int(second.resize_mode[i])])
            x = _noisy(x, second, i, poisson_levels, fields, 2)
            if final.before_jpeg[i]:
                x = _finished(x, final, kernels[2][i], i, (height, width)).clamp(0, 1)
                x = _compressed(x, second, i, jpeg)
            else:
                x = _compressed(x, second, i, jpeg)
                x = _finished(x, final, kernels[2][i], i, (height, width))
            results.append((x.clamp(0, 1) * 255).round() / 255)
    return torch.cat(results) if results else hr.new_empty(0, 3, height, width)
