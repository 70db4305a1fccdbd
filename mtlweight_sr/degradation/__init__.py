"""The two-stage degradation of Real-ESRGAN as a pure function, every choice per sample."""

from mtlweight_sr.degradation.blur import blur, usm_sharpen
from mtlweight_sr.degradation.boxes import Box, boxes_where
from mtlweight_sr.degradation.columns import COLUMNS
from mtlweight_sr.degradation.jpeg import jpeg
from mtlweight_sr.degradation.kernels import blur_kernels
from mtlweight_sr.degradation.noise import gaussian_noise, poisson_noise
from mtlweight_sr.degradation.parameters import (
    DegradationParameters,
    FinalParameters,
    StageParameters,
)
from mtlweight_sr.degradation.pipeline import degrade
from mtlweight_sr.degradation.resize import resize_by, resize_to
from mtlweight_sr.degradation.sampling import draw_cube, draw_seeds, parameters_from_cube
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

__all__ = [
    "COLUMNS",
    "FAMILIES",
    "MODES",
    "REALESRGAN_X2",
    "REALESRGAN_X4",
    "BlurSettings",
    "Box",
    "DegradationParameters",
    "DegradationSpace",
    "FinalParameters",
    "FinalStage",
    "JpegSettings",
    "NoiseSettings",
    "ResizeSettings",
    "Stage",
    "StageParameters",
    "blur",
    "blur_kernels",
    "boxes_where",
    "degrade",
    "draw_cube",
    "draw_seeds",
    "gaussian_noise",
    "jpeg",
    "parameters_from_cube",
    "poisson_noise",
    "resize_by",
    "resize_to",
    "usm_sharpen",
]
