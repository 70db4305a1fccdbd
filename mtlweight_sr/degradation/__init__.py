"""The two-stage degradation of Real-ESRGAN as a pure function, every choice per sample."""

from mtlweight_sr.degradation.blur import blur
from mtlweight_sr.degradation.boxes import Box, boxes_where
from mtlweight_sr.degradation.columns import COLUMNS
from mtlweight_sr.degradation.crop import crop_pair
from mtlweight_sr.degradation.jpeg import jpeg
from mtlweight_sr.degradation.kernels import blur_kernels
from mtlweight_sr.degradation.mixture import Component, Mixture, Space
from mtlweight_sr.degradation.noise import gaussian_noise, poisson_noise
from mtlweight_sr.degradation.parameters import (
    DegradationParameters,
    FinalParameters,
    StageParameters,
)
from mtlweight_sr.degradation.pipeline import degrade
from mtlweight_sr.degradation.presets import (
    DASR_SEVERE,
    DASR_SHARES,
    DASR_STANDARD,
    DASR_WEAK,
    STABLESR_X4,
)
from mtlweight_sr.degradation.resize import resize_by, resize_to
from mtlweight_sr.degradation.sampling import (
    draw_cube,
    draw_parameters,
    draw_seeds,
    parameters_from_cube,
)
from mtlweight_sr.degradation.space import (
    FAMILIES,
    MODES,
    REALESRGAN_X2,
    REALESRGAN_X4,
    BlurSettings,
    DegradationSpace,
    FinalStage,
    JpegSettings,
    NoiseSettings,
    ResizeSettings,
    Stage,
)
from mtlweight_sr.degradation.usm import usm_sharpen

__all__ = [
    "COLUMNS",
    "DASR_SEVERE",
    "DASR_SHARES",
    "DASR_STANDARD",
    "DASR_WEAK",
    "FAMILIES",
    "MODES",
    "REALESRGAN_X2",
    "REALESRGAN_X4",
    "STABLESR_X4",
    "BlurSettings",
    "Box",
    "Component",
    "DegradationParameters",
    "DegradationSpace",
    "FinalParameters",
    "FinalStage",
    "JpegSettings",
    "Mixture",
    "NoiseSettings",
    "ResizeSettings",
    "Space",
    "Stage",
    "StageParameters",
    "blur",
    "blur_kernels",
    "boxes_where",
    "crop_pair",
    "degrade",
    "draw_cube",
    "draw_parameters",
    "draw_seeds",
    "gaussian_noise",
    "jpeg",
    "parameters_from_cube",
    "poisson_noise",
    "resize_by",
    "resize_to",
    "usm_sharpen",
]
