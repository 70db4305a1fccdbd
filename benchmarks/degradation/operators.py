"""Every operator, ours and the others': builders of the calls that are timed.

On a CPU ours takes the rows one by one, as `degrade` does there; the others get the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.degradation.measure import Call
from benchmarks.degradation.reference import Reference
from benchmarks.degradation.units import Unit
from mtlweight_sr.degradation import MODES, REALESRGAN_X4, blur, jpeg, resize_by, usm_sharpen
from mtlweight_sr.degradation.columns import NOISE_TYPES
from mtlweight_sr.degradation.jpeg import JpegMode
from mtlweight_sr.degradation.kernels import degradation_kernels
from mtlweight_sr.degradation.noise import add_noise, normal_fields


def _each(images: Tensor, one: Callable[[Tensor, int], Tensor]) -> None:
    for i in range(len(images)):
        one(images[i : i + 1], i)


# --- kernels -------------------------------------------------------------------------------------


def kernels(unit: Unit) -> Call:
    rows = unit.rows()
    return lambda turn: degradation_kernels(rows)


def kernels_basicsr(unit: Unit) -> Call:
    rows, reference = unit.rows(), Reference()

    def call(turn: int) -> None:
        for stage in (rows.first, rows.second, rows.final):
            reference.kernels(stage)

    return call


# --- blur ----------------------------------------------------------------------------------------


def blur_ours(unit: Unit) -> Call:
    images, taps = unit.images(), degradation_kernels(unit.rows())[0]
    if unit.on_gpu:
        return lambda turn: blur(images, taps)
    each = [taps[i] for i in range(unit.batch)]
    return lambda turn: _each(images, lambda image, i: blur(image, each[i]))


def blur_basicsr(unit: Unit) -> Call:
    images, reference = unit.images(), Reference(unit.device)
    taps = reference.kernels(unit.rows().first)
    return lambda turn: reference.blur(images, taps)


def blur_kornia(unit: Unit) -> Call:
    from kornia.filters import filter2d

    images, taps = unit.images(), degradation_kernels(unit.rows())[0].taps.to(unit.device)
    return lambda turn: filter2d(images, taps, "reflect")


# --- resize --------------------------------------------------------------------------------------


def resize(unit: Unit) -> Call:
    images, stage = unit.images(), unit.rows().first
    factors, modes = stage.resize_scale.tolist(), [MODES[i] for i in stage.resize_mode.tolist()]
    if unit.on_gpu:
        return lambda turn: resize_by(images, factors, modes)
    return lambda turn: _each(images, lambda image, i: resize_by(image, factors[i], modes[i]))


def resize_torch(unit: Unit) -> Call:
    """BasicSR has none of its own; a batch shares one factor there, so that rows go one by one."""
    images, stage, reference = unit.images(), unit.rows().first, Reference(unit.device)
    factors, modes = stage.resize_scale.tolist(), [MODES[i] for i in stage.resize_mode.tolist()]
    return lambda turn: _each(
        images, lambda image, i: reference.resize_by(image, factors[i], modes[i])
    )


# --- noise ---------------------------------------------------------------------------------------


def _strengths(unit: Unit) -> tuple[str, Tensor, Tensor]:
    kind = unit.operator.split()[0].lower()
    settings, stage = REALESRGAN_X4.first.noise, unit.rows().first
    low, high = settings.sigma if kind == "gaussian" else settings.scale
    return kind, low + (high - low) * stage.noise_level, stage.gray_noise


def noise(unit: Unit) -> Call:
    images = unit.images()
    kind, strength, gray = _strengths(unit)
    types = torch.full((unit.batch,), NOISE_TYPES.index(kind))
    shape = (unit.size, unit.size)
    shared = gray.tolist()

    def some(part: slice, keys: range) -> Tensor:
        normals = normal_fields(keys, 1, shape, gray=shared[part], device=unit.device)
        return add_noise(images[part], types[part], strength[part], gray[part], normals)

    if unit.on_gpu:
        return lambda turn: some(slice(None), range(unit.batch))
    return lambda turn: _each(images, lambda image, i: some(slice(i, i + 1), range(i, i + 1)))


def noise_basicsr(unit: Unit) -> Call:
    images, reference = unit.images(), Reference(unit.device)
    kind, strength, gray = _strengths(unit)
    field = reference.gaussian_noise if kind == "gaussian" else reference.poisson_noise
    return lambda turn: torch.clamp(images + field(images, strength, gray), 0, 1)


# --- JPEG ----------------------------------------------------------------------------------------


def jpeg_ours(mode: JpegMode) -> Callable[[Unit], Call]:
    def build(unit: Unit) -> Call:
        images, quality = unit.images(), unit.rows().first.jpeg_quality
        if unit.on_gpu:
            return lambda turn: jpeg(images, quality, mode)
        return lambda turn: _each(images, lambda image, i: jpeg(image, quality[i : i + 1], mode))

    return build


def jpeg_basicsr(unit: Unit) -> Call:
    images, quality = unit.images(), unit.rows().first.jpeg_quality
    reference = Reference(unit.device)
    return lambda turn: reference.jpeg(images, quality)


def jpeg_kornia(unit: Unit) -> Call:
    from kornia.enhance import jpeg_codec_differentiable

    images = unit.images()
    quality = unit.rows().first.jpeg_quality.to(images)
    return lambda turn: jpeg_codec_differentiable(images, quality)


# --- sharpening ----------------------------------------------------------------------------------


def sharpening(unit: Unit) -> Call:
    images = unit.images()
    if unit.on_gpu:
        return lambda turn: usm_sharpen(images)
    return lambda turn: _each(images, lambda image, i: usm_sharpen(image))


def sharpening_basicsr(unit: Unit) -> Call:
    images, reference = unit.images(), Reference(unit.device)
    return lambda turn: reference.sharpen(images)
