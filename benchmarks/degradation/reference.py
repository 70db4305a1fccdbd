"""Real-ESRGAN's training degradation, driven around BasicSR's own functions.

The order is that of the published training: blur, resize, noise, JPEG; blur, resize, noise, and in
either order JPEG and (resize, sinc); rounding. Choices that the published training makes once per
batch are read from the first row, so that a batch of one is any single row of parameters.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.degradation.peer import basicsr
from mtlweight_sr.degradation import (
    COLUMNS,
    FAMILIES,
    MODES,
    DegradationParameters,
    FinalParameters,
    StageParameters,
)
from mtlweight_sr.degradation.columns import NOISE_TYPES

SIZE = 21
PER_BATCH = (
    *(
        f"{name}_{s}"
        for s in (1, 2)
        for name in ("resize_direction", "resize_scale", "resize_mode", "noise_type")
    ),
    "blur_2",
    "final_sinc_before_jpeg",
    "final_resize_mode",
)
"""Columns of the cube that the published training draws once per batch."""


def per_batch_choices(alone: Tensor, shared: Tensor) -> Tensor:
    """Returns the cube `[..., B, 38]` of `alone`, its columns of `PER_BATCH` from `shared`."""
    columns = [COLUMNS.index(name) for name in PER_BATCH]
    cube = alone.clone()
    cube[..., columns] = shared[..., columns]
    return cube


class Reference:
    """BasicSR's functions on a device.

    Attributes:
        functions: They themselves.
        jpeger: The codec.
        sharpener: The sharpening of ground truth.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.functions = basicsr()
        self.device = torch.device(device)
        self.jpeger = self.functions.diffjpeg.DiffJPEG(differentiable=False).to(self.device)
        self.sharpener = self.functions.filters.USMSharp().to(self.device)

    def kernels(self, stage: StageParameters | FinalParameters) -> Tensor:
        """Returns the kernels of a stage, `[B, 21, 21]`, row by row as the loader makes them."""
        rows = [
            self._final_kernel(stage, i)
            if isinstance(stage, FinalParameters)
            else self._stage_kernel(stage, i)
            for i in range(len(stage.kernel_size))
        ]
        return torch.from_numpy(np.stack(rows)).float().to(self.device)

    def _stage_kernel(self, stage: StageParameters, i: int) -> np.ndarray:
        size = int(stage.kernel_size[i])
        if stage.sinc[i]:
            return self._sinc(float(stage.omega[i]), size)
        family = int(stage.family[i])
        sigma_x, sigma_y, rotation, beta = (
            float(values[i])
            for values in (stage.sigma_x, stage.sigma_y, stage.rotation, stage.beta)
        )
        of = self.functions.degradations
        isotropic = FAMILIES[family].endswith("_isotropic") or FAMILIES[family] == "isotropic"
        axes = (size, sigma_x, sigma_y, rotation)
        if "generalised" in FAMILIES[family]:
            kernel = of.bivariate_generalized_Gaussian(*axes, beta, isotropic=isotropic)
        elif "plateau" in FAMILIES[family]:
            kernel = of.bivariate_plateau(*axes, beta, isotropic=isotropic)
        else:
            kernel = of.bivariate_Gaussian(*axes, isotropic=isotropic)
        margin = (SIZE - size) // 2
        return np.pad(kernel, margin)

    def _final_kernel(self, final: FinalParameters, i: int) -> np.ndarray:
        if not final.sinc[i]:
            pulse = np.zeros((SIZE, SIZE))
            pulse[SIZE // 2, SIZE // 2] = 1
            return pulse
        return self._sinc(float(final.omega[i]), int(final.kernel_size[i]))

    def _sinc(self, omega: float, size: int) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):  # its centre is 0 / 0, then replaced
            return self.functions.degradations.circular_lowpass_kernel(omega, size, pad_to=SIZE)

    def blur(self, images: Tensor, kernels: Tensor) -> Tensor:
        return self.functions.filters.filter2D(images, kernels)

    def resize_by(self, images: Tensor, factor: float, mode: str) -> Tensor:
        return F.interpolate(images, scale_factor=factor, mode=mode)

    def resize_to(self, images: Tensor, size: tuple[int, int], mode: str) -> Tensor:
        return F.interpolate(images, size=size, mode=mode)

    def gaussian_noise(self, images: Tensor, sigma: Tensor, gray: Tensor) -> Tensor:
        sigma, gray = (t.to(images) for t in (sigma, gray))
        return self.functions.degradations.generate_gaussian_noise_pt(images, sigma, gray)

    def poisson_noise(self, images: Tensor, scale: Tensor, gray: Tensor) -> Tensor:
        scale, gray = (t.to(images) for t in (scale, gray))
        return self.functions.degradations.generate_poisson_noise_pt(images, scale, gray)

    @torch.no_grad()
    def jpeg(self, images: Tensor, quality: Tensor) -> Tensor:
        # It overwrites the qualities. What it returns is a permuted view, which the filter that
        # comes next refuses on a CPU.
        out = self.jpeger(images, quality=quality.to(images, copy=True))
        return out.contiguous() if out.device.type == "cpu" else out

    def sharpen(self, images: Tensor) -> Tensor:
        return self.sharpener(images)

    @torch.no_grad()
    def degrade(self, hr: Tensor, rows: DegradationParameters) -> Tensor:
        """Returns the LR images of a batch; noise is torch's global one."""
        first, second, final = rows.first, rows.second, rows.final
        height, width = (side // rows.scale for side in hr.shape[-2:])
        kernels = [self.kernels(stage) for stage in (first, second, final)]
        x = self.blur(hr, kernels[0]) if first.blur[0] else hr
        x = self.resize_by(x, float(first.resize_scale[0]), MODES[int(first.resize_mode[0])])
        x = self._noisy(x, first)
        x = self._compressed(x, first)
        if second.blur[0]:
            x = self.blur(x, kernels[1])
        factor = float(second.resize_scale[0])
        size = int(height * factor), int(width * factor)
        x = self.resize_to(x, size, MODES[int(second.resize_mode[0])])
        x = self._noisy(x, second)
        mode = MODES[int(final.resize_mode[0])]
        if final.before_jpeg[0]:
            x = self.blur(self.resize_to(x, (height, width), mode), kernels[2])
            x = self._compressed(x, second)
        else:
            x = self._compressed(x, second)
            x = self.blur(self.resize_to(x, (height, width), mode), kernels[2])
        return torch.clamp((x * 255.0).round(), 0, 255) / 255.0

    def _noisy(self, images: Tensor, stage: StageParameters) -> Tensor:
        kind = NOISE_TYPES[int(stage.noise_type[0])]
        if kind != "none":
            field = self.gaussian_noise if kind == "gaussian" else self.poisson_noise
            images = images + field(images, stage.noise_strength, stage.gray_noise)
        return torch.clamp(images, 0, 1)

    def _compressed(self, images: Tensor, stage: StageParameters) -> Tensor:
        images = torch.clamp(images, 0, 1)
        return self.jpeg(images, stage.jpeg_quality) if stage.jpeg[0] else images
