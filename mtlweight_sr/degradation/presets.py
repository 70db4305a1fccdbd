"""Published degradation spaces beside Real-ESRGAN's, as numbers alone."""

from __future__ import annotations

from mtlweight_sr.degradation.space import (
    REALESRGAN_X4,
    BlurSettings,
    DegradationSpace,
    FinalStage,
    JpegSettings,
    NoiseSettings,
    ResizeSettings,
    Stage,
)

__all__ = ["DASR_SEVERE", "DASR_SHARES", "DASR_STANDARD", "DASR_WEAK", "STABLESR_X4"]

_DASR_SIZES = (9, 11, 13, 15, 17, 19, 21)
_DASR_FAMILIES = (0.65, 0.35, 0.0, 0.0, 0.0, 0.0)


def _dasr_blur(sigma: tuple[float, float], on: float = 1.0) -> BlurSettings:
    return BlurSettings(
        on=on,
        kernel_sizes=_DASR_SIZES,
        sinc=0.0,
        families=_DASR_FAMILIES,
        sigma_x=sigma,
        sigma_y=sigma,
    )


# What is left of the second stage is its resize to LR size.
_RESIZE_ALONE = Stage(
    blur=BlurSettings(on=0.0),
    resize=ResizeSettings(up=0.0, down=0.0, keep=1.0),
    noise=NoiseSettings(on=0.0),
    jpeg=JpegSettings(on=0.0),
)
_NO_SINC = FinalStage(sinc=0.0)

DASR_WEAK = DegradationSpace(
    first=Stage(
        blur=_dasr_blur((0.2, 0.8)),
        resize=ResizeSettings(
            up=0.1, down=0.2, keep=0.7, up_range=(1.0, 1.2), down_range=(0.85, 1.0)
        ),
        noise=NoiseSettings(sigma=(1.0, 10.0), scale=(0.05, 0.5)),
        jpeg=JpegSettings(quality=(90.0, 95.0)),
    ),
    second=_RESIZE_ALONE,
    final=_NO_SINC,
)
"""The weakest of DASR's three levels: one stage, then the resize to LR size.

Its settings name 7 as the smallest kernel of all three levels, its code draws from 9 to 21; these
are the code's.

Source: Liang, Zeng and Zhang, DASR (ECCV 2022), section 3.1, and its published training settings.
"""

DASR_STANDARD = DegradationSpace(
    first=Stage(
        blur=_dasr_blur((0.2, 1.5)),
        resize=ResizeSettings(
            up=0.3, down=0.4, keep=0.3, up_range=(1.0, 1.2), down_range=(0.5, 1.0)
        ),
        noise=NoiseSettings(sigma=(1.0, 20.0), scale=(0.05, 1.5)),
        jpeg=JpegSettings(quality=(50.0, 95.0)),
    ),
    second=_RESIZE_ALONE,
    final=_NO_SINC,
)
"""The middle level of DASR: as `DASR_WEAK`, in wider ranges."""

DASR_SEVERE = DegradationSpace(
    first=REALESRGAN_X4.first.model_copy(update={"blur": _dasr_blur((0.2, 3.0))}),
    second=REALESRGAN_X4.second.model_copy(update={"blur": _dasr_blur((0.2, 1.5), on=0.8)}),
    final=FinalStage(kernel_sizes=_DASR_SIZES),
)
"""The strongest level of DASR: both stages of Real-ESRGAN with plain Gaussian blurs."""

DASR_SHARES = (0.3, 0.3, 0.4)
"""The shares of `DASR_WEAK`, `DASR_STANDARD` and `DASR_SEVERE` in DASR's training."""

STABLESR_X4 = DegradationSpace(
    first=Stage(
        blur=BlurSettings(
            sigma_x=(0.2, 1.5),
            sigma_y=(0.2, 1.5),
            beta_generalised_high=(1.0, 2.0),
            beta_plateau_high=(1.0, 1.5),
        ),
        resize=ResizeSettings(down_range=(0.3, 1.0)),
        noise=NoiseSettings(sigma=(1.0, 15.0), scale=(0.05, 2.0)),
        jpeg=JpegSettings(quality=(60.0, 95.0)),
    ),
    second=Stage(
        blur=BlurSettings(
            on=0.5,
            sigma_x=(0.2, 1.0),
            sigma_y=(0.2, 1.0),
            beta_generalised_high=(1.0, 2.0),
            beta_plateau_high=(1.0, 1.5),
        ),
        resize=ResizeSettings(
            up=0.3, down=0.4, keep=0.3, up_range=(1.0, 1.2), down_range=(0.6, 1.0)
        ),
        noise=NoiseSettings(sigma=(1.0, 12.0), scale=(0.05, 1.0)),
        jpeg=JpegSettings(quality=(60.0, 100.0)),
    ),
)
"""Real-ESRGAN's pipeline in the weaker ranges of StableSR; without its one clean pair in a hundred.

Source: Wang et al., StableSR (2023), and its published training settings for photographs.
"""
