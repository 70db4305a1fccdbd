"""The two-stage degradation of Real-ESRGAN as a pure function, every choice per sample."""

from .blur import blur, usm_sharpen
from .boxes import Box, boxes_where
from .columns import COLUMNS
from .jpeg import jpeg
from .kernels import blur_kernels
from .noise import gaussian_noise, poisson_noise
from .parameters import DegradationParameters, FinalParameters, StageParameters
from .pipeline import degrade
from .resize import resize_by, resize_to
from .sampling import draw_cube, draw_seeds, parameters_from_cube
from .space import (
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
