"""The parameters of a batch of degradations: one row per sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from mtlweight_sr.degradation.columns import NOISE_TYPES
from mtlweight_sr.degradation.space import FAMILIES, MODES

__all__ = ["DegradationParameters", "FinalParameters", "StageParameters"]


class _Rows:
    """Tensors with one row per sample, indexed and moved together."""

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        for name, value in values.items():
            if isinstance(value, Tensor):
                values[name] = change(value)
            elif isinstance(value, _Rows):
                values[name] = value._each(change)
        return type(self)(**values)


@dataclass(frozen=True, eq=False)
class StageParameters(_Rows):
    """One stage of blur, resize, noise and JPEG, each field a tensor `[B]`; reals are float64.

    Attributes:
        blur: Whether the image is blurred, bool.
        kernel_size: Odd size of the kernel, int64.
        sinc: Whether the kernel is a sinc, bool.
        family: Place in `FAMILIES`, int64; read where the kernel is no sinc.
        sigma_x: Standard deviation along the kernel's first axis, in pixels.
        sigma_y: The same for the second axis; equal to `sigma_x` in isotropic families.
        rotation: Rotation in radians; 0 in isotropic families.
        beta: Shape exponent; 1 in plain Gaussians.
        omega: Cutoff of a sinc, in radians per pixel.
        resize_scale: Factor of the resize, relative to the HR size in stage 1 and to the LR size in
            stage 2.
        resize_mode: Place in `MODES`, int64.
        noise_type: Place in `NOISE_TYPES`, int64.
        noise_level: Strength in [0, 1], as a fraction of the type's range.
        noise_strength: Gaussian: standard deviation in 1/255. Poisson: multiplier. None: 0.
        gray_noise: Whether the channels share one field, bool.
        jpeg: Whether the image is compressed, bool.
        jpeg_quality: Real-valued quality; 100 where not compressed.
    """

    blur: Tensor
    kernel_size: Tensor
    sinc: Tensor
    family: Tensor
    sigma_x: Tensor
    sigma_y: Tensor
    rotation: Tensor
    beta: Tensor
    omega: Tensor
    resize_scale: Tensor
    resize_mode: Tensor
    noise_type: Tensor
    noise_level: Tensor
    noise_strength: Tensor
    gray_noise: Tensor
    jpeg: Tensor
    jpeg_quality: Tensor


@dataclass(frozen=True, eq=False)
class FinalParameters(_Rows):
    """The last resize and the final sinc, each field a tensor `[B]`.

    Attributes:
        sinc: Whether the final sinc filter is applied, bool.
        kernel_size: Its odd size, int64.
        omega: Its cutoff, in radians per pixel, float64.
        before_jpeg: Whether resize and sinc come before the second JPEG, bool.
        resize_mode: Place in `MODES` of the last resize, int64.
    """

    sinc: Tensor
    kernel_size: Tensor
    omega: Tensor
    before_jpeg: Tensor
    resize_mode: Tensor


@dataclass(frozen=True, eq=False)
class DegradationParameters(_Rows):
    """All that `degrade` needs besides the images: one row per sample.

    Keep it on the CPU: its choices steer Python code, whichever device the images are on.

    Attributes:
        scale: HR size over LR size.
        first: The first stage.
        second: The second stage.
        final: The last resize and filter.
        cube: The row of the unit cube behind each sample, `[B, 38]` float64; it reproduces
            everything but the noise.
        seed: The key of each sample's noise fields, `[B]` int64.
    """

    scale: int
    first: StageParameters
    second: StageParameters
    final: FinalParameters
    cube: Tensor
    seed: Tensor

    def __len__(self) -> int:
        return len(self.seed)

    def __getitem__(self, index: int | slice | Tensor) -> DegradationParameters:
        """Some rows: a slice, a tensor of indices or a mask; an int gives a batch of one.

        Raises:
            IndexError: An int outside the batch.
        """
        if isinstance(index, int):
            row = range(len(self))[index]
            index = slice(row, row + 1)
        return self._each(lambda tensor: tensor[index])

    def to(self, device: torch.device | str) -> DegradationParameters:
        """The same rows on another device."""
        return self._each(lambda tensor: tensor.to(device))

    def describe(self, i: int) -> str:
        """Row `i` in words, operator by operator in the order of application."""
        row = self[i].to("cpu")
        final = row.final
        last = f"{MODES[int(final.resize_mode)]} resize to 1/{row.scale} of the HR size"
        if final.sinc:
            last += (
                f", sinc filter {int(final.kernel_size)}x{int(final.kernel_size)} with cutoff "
                f"{float(final.omega):.2f}"
            )
        jpeg = _jpeg(row.second)
        ending = (last, jpeg) if final.before_jpeg else (jpeg, last)
        steps = (
            _blur(row.first),
            _resize(row.first, "HR"),
            _noise(row.first),
            _jpeg(row.first),
            _blur(row.second),
            _resize(row.second, "LR"),
            _noise(row.second),
            *ending,
        )
        return "; ".join(step for step in steps if step)


def _blur(stage: StageParameters) -> str:
    if not stage.blur:
        return ""
    size = int(stage.kernel_size)
    if stage.sinc:
        return f"sinc blur {size}x{size} with cutoff {float(stage.omega):.2f}"
    family = int(stage.family)
    name = FAMILIES[family].replace("_", " ")
    words = f"{name} blur {size}x{size} with sigma {float(stage.sigma_x):.2f}"
    if family % 2:
        words += f" and {float(stage.sigma_y):.2f} rotated by {float(stage.rotation):.2f} rad"
    return words + (f", exponent {float(stage.beta):.2f}" if family > 1 else "")


def _resize(stage: StageParameters, of: str) -> str:
    mode = MODES[int(stage.resize_mode)]
    return f"{mode} resize to {float(stage.resize_scale):.2f} of the {of} size"


def _noise(stage: StageParameters) -> str:
    kind = NOISE_TYPES[int(stage.noise_type)]
    if kind == "none":
        return ""
    shared = "gray " if stage.gray_noise else ""
    strength = float(stage.noise_strength)
    return (
        f"{shared}Gaussian noise of sigma {strength:.1f}/255"
        if kind == "gaussian"
        else f"{shared}Poisson noise of scale {strength:.2f}"
    )


def _jpeg(stage: StageParameters) -> str:
    return f"JPEG of quality {float(stage.jpeg_quality):.0f}" if stage.jpeg else ""
