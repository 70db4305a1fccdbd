"""The degradation space as data: every probability and range of the two-stage pipeline, validated.

Presets differ by these numbers alone: an operator is switched off by its `on` probability, never by
code.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "FAMILIES",
    "MODES",
    "REALESRGAN_X2",
    "REALESRGAN_X4",
    "BlurSettings",
    "DegradationSpace",
    "FinalStage",
    "JpegSettings",
    "NoiseSettings",
    "ResizeSettings",
    "Stage",
    "exact",
]

FAMILIES = (
    "isotropic",
    "anisotropic",
    "generalised_isotropic",
    "generalised_anisotropic",
    "plateau_isotropic",
    "plateau_anisotropic",
)
"""Kernel families; a family's number is its place here, even numbers are isotropic."""

MODES = ("area", "bilinear", "bicubic")
"""Interpolations of a resize; a mode's number is its place here."""


def exact(number: float | Fraction) -> Fraction:
    """The rational that a number's decimal form writes: 0.45 is 9/20, so masses add up exactly."""
    return number if isinstance(number, Fraction) else Fraction(repr(float(number)))


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if not bounds[0] <= bounds[1]:
        raise ValueError(
            f"expected (low, high) with low <= high, got {bounds}; write {bounds[::-1]}"
        )
    return bounds


def _partition(probabilities: tuple[float, ...]) -> tuple[float, ...]:
    if abs(math.fsum(probabilities) - 1) > 1e-9:
        raise ValueError(
            f"expected probabilities that sum to 1, got {probabilities} with sum "
            f"{math.fsum(probabilities)}; divide each by that sum"
        )
    return probabilities


def _kernel_sizes(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if not sizes or any(not 1 <= size <= 21 or size % 2 == 0 for size in sizes):
        raise ValueError(
            f"expected odd kernel sizes from 1 to 21, got {sizes}; write for example (7, 9, 11)"
        )
    if any(low >= high for low, high in pairwise(sizes)):
        raise ValueError(
            f"expected kernel sizes in increasing order, got {sizes}; write "
            f"{tuple(sorted(set(sizes)))}"
        )
    return sizes


_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Cutoff = Annotated[float, Field(gt=0, le=math.pi)]
_Quality = Annotated[float, Field(ge=1, le=100)]
_Probability = Annotated[float, Field(ge=0, le=1)]
_Range = Annotated[tuple[_Finite, _Finite], AfterValidator(_ordered)]
_PositiveRange = Annotated[tuple[_Positive, _Positive], AfterValidator(_ordered)]
_NotNegativeRange = Annotated[tuple[_NotNegative, _NotNegative], AfterValidator(_ordered)]
_CutoffRange = Annotated[tuple[_Cutoff, _Cutoff], AfterValidator(_ordered)]
_QualityRange = Annotated[tuple[_Quality, _Quality], AfterValidator(_ordered)]
_KernelSizes = Annotated[tuple[int, ...], AfterValidator(_kernel_sizes)]
_Modes = Annotated[tuple[_Probability, _Probability, _Probability], AfterValidator(_partition)]
_Families = Annotated[
    tuple[_Probability, _Probability, _Probability, _Probability, _Probability, _Probability],
    AfterValidator(_partition),
]

_SIZES = (7, 9, 11, 13, 15, 17, 19, 21)


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BlurSettings(_Settings):
    """Which blur kernel is drawn; the defaults are Real-ESRGAN's first stage.

    Attributes:
        on: Probability that the image is blurred at all.
        kernel_sizes: Odd sizes from 1 to 21 in increasing order, equally likely.
        sinc: Probability of a sinc kernel instead of a Gaussian-like one, given that the image is
            blurred.
        families: Probabilities of the six `FAMILIES`, given a kernel that is no sinc.
        sigma_x: Range of the standard deviation along the kernel's first axis, in pixels.
        sigma_y: The same for the second axis; read by anisotropic families only.
        rotation: Range of the rotation of an anisotropic kernel, in radians.
        beta_low: Probability of the low branch of the shape exponent.
        beta_generalised_low: Low range of the exponent of generalised Gaussians.
        beta_generalised_high: Their high range.
        beta_plateau_low: Low range of the exponent of plateau kernels.
        beta_plateau_high: Their high range.
        large_from: The kernel size from which `cutoff_large` holds.
        cutoff_small: Range of a sinc's cutoff frequency in radians per pixel for smaller kernels.
        cutoff_large: The same for kernels of `large_from` and more.
    """

    on: _Probability = 1.0
    kernel_sizes: _KernelSizes = _SIZES
    sinc: _Probability = 0.1
    families: _Families = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    sigma_x: _PositiveRange = (0.2, 3.0)
    sigma_y: _PositiveRange = (0.2, 3.0)
    rotation: _Range = (-math.pi, math.pi)
    beta_low: _Probability = 0.5
    beta_generalised_low: _PositiveRange = (0.5, 1.0)
    beta_generalised_high: _PositiveRange = (1.0, 4.0)
    beta_plateau_low: _PositiveRange = (1.0, 1.0)
    beta_plateau_high: _PositiveRange = (1.0, 2.0)
    large_from: int = 13
    cutoff_small: _CutoffRange = (math.pi / 3, math.pi)
    cutoff_large: _CutoffRange = (math.pi / 5, math.pi)


class ResizeSettings(_Settings):
    """How the image is resized; the defaults are Real-ESRGAN's first stage.

    Attributes:
        up: Probability of enlarging.
        down: Probability of shrinking.
        keep: Probability of factor 1; the three sum to 1.
        up_range: Range of the factor when enlarging.
        down_range: Range of the factor when shrinking.
        modes: Probabilities of the three `MODES`.
    """

    up: _Probability = 0.2
    down: _Probability = 0.7
    keep: _Probability = 0.1
    up_range: _PositiveRange = (1.0, 1.5)
    down_range: _PositiveRange = (0.15, 1.0)
    modes: _Modes = (1 / 3, 1 / 3, 1 / 3)

    @model_validator(mode="after")
    def _directions_sum_to_one(self) -> Self:
        _partition((self.up, self.down, self.keep))
        return self


class NoiseSettings(_Settings):
    """Which noise is added; the defaults are Real-ESRGAN's first stage.

    One level in [0, 1] sets the strength of either type: the same level is the same strength within
    8 % for both.

    Attributes:
        on: Probability that noise is added at all.
        gaussian: Probability of Gaussian noise, given noise; Poisson noise otherwise.
        sigma: Range of the Gaussian standard deviation, in 1/255.
        scale: Range of the Poisson noise's multiplier.
        gray: Probability that the three channels share one field.
    """

    on: _Probability = 1.0
    gaussian: _Probability = 0.5
    sigma: _NotNegativeRange = (1.0, 30.0)
    scale: _NotNegativeRange = (0.05, 3.0)
    gray: _Probability = 0.4


class JpegSettings(_Settings):
    """How the image is compressed.

    Attributes:
        on: Probability that the image is compressed at all.
        quality: Range of the quality, within 1 to 100.
    """

    on: _Probability = 1.0
    quality: _QualityRange = (30.0, 95.0)


class Stage(_Settings):
    """One round of blur, resize, noise and JPEG.

    Attributes:
        blur: Settings of the blur.
        resize: Settings of the resize; factors are relative to the HR size in the first stage, to
            the LR size in the second.
        noise: Settings of the noise.
        jpeg: Settings of the compression.
    """

    blur: BlurSettings = BlurSettings()
    resize: ResizeSettings = ResizeSettings()
    noise: NoiseSettings = NoiseSettings()
    jpeg: JpegSettings = JpegSettings()


class FinalStage(_Settings):
    """The last resize to LR size and the final sinc filter.

    Attributes:
        sinc: Probability of the sinc filter.
        kernel_sizes: Its sizes, equally likely.
        cutoff: Range of its cutoff frequency in radians per pixel.
        before_jpeg: Probability that resize and sinc come before the second JPEG, not after it.
        modes: Probabilities of the three `MODES` of the resize.
    """

    sinc: _Probability = 0.8
    kernel_sizes: _KernelSizes = _SIZES
    cutoff: _CutoffRange = (math.pi / 3, math.pi)
    before_jpeg: _Probability = 0.5
    modes: _Modes = (1 / 3, 1 / 3, 1 / 3)


class DegradationSpace(_Settings):
    """A distribution over degradations: the scale and the settings of every operator.

    Written and read as JSON by `model_dump_json` and `model_validate_json`.

    Attributes:
        scale: HR size over LR size, 2 or 4.
        first: The first stage, on the HR grid.
        second: The second stage.
        final: What brings the image to LR size.

    Raises:
        pydantic.ValidationError: Names the field, the value and what was expected.

    Source: Wang et al., Real-ESRGAN (2021), section 3, and its published training settings.
    """

    scale: Literal[2, 4] = 4
    first: Stage = Stage()
    second: Stage
    final: FinalStage = FinalStage()


_SECOND = Stage(
    blur=BlurSettings(on=0.8, sigma_x=(0.2, 1.5), sigma_y=(0.2, 1.5)),
    resize=ResizeSettings(up=0.3, down=0.4, keep=0.3, up_range=(1.0, 1.2), down_range=(0.3, 1.0)),
    noise=NoiseSettings(sigma=(1.0, 25.0), scale=(0.05, 2.5)),
)

REALESRGAN_X4 = DegradationSpace(scale=4, second=_SECOND)
"""The training distribution of Real-ESRGAN x4 (ESRNet and ESRGAN alike)."""

REALESRGAN_X2 = DegradationSpace(scale=2, second=_SECOND)
"""The training distribution of Real-ESRGAN x2: the same numbers, LR of half the HR size."""
