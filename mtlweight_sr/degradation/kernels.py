r"""Blur kernels, batched: Gaussian-like families and the sinc, `[B, 21, 21]`, every one of sum 1.

With $z=(x,y)$ on the integer grid centred on the kernel, $R(\theta)$ a rotation and
$q=z^\top(R\,\mathrm{diag}(\sigma_x^2,\sigma_y^2)\,R^\top)^{-1}z$:

- Gaussian $e^{-q/2}$; generalised Gaussian $e^{-q^\beta/2}$; plateau $1/(1+q^\beta)$;
- sinc $\omega J_1(\omega r)/(2\pi r)$ with $r=|z|$ and $\omega^2/4\pi$ at the centre: the ideal
  low-pass filter of radius $\omega$.

Outside its own odd size a kernel is zero. Kernels are made on the host, in float64, from parameters
on the CPU. Source: Real-ESRGAN (2021), sections 3.1 and 3.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import torch
from torch import Tensor

from mtlweight_sr.degradation.kernel_shapes import SIZE, KernelRows
from mtlweight_sr.degradation.parameters import (
    DegradationParameters,
    FinalParameters,
    StageParameters,
)

__all__ = [
    "SIZE",
    "Kernels",
    "blur_kernels",
    "degradation_kernels",
    "gaussian_like",
    "sinc",
    "stage_kernels",
]


def gaussian_like(
    size: Tensor, family: Tensor, sigma_x: Tensor, sigma_y: Tensor, rotation: Tensor, beta: Tensor
) -> Tensor:
    """Kernels of the six families; arguments `[B]` on the CPU, result `[B, 21, 21]` float64.

    Args:
        size: Odd sizes up to 21.
        family: Places in `FAMILIES`; isotropic ones ignore `sigma_y` and `rotation`, plain
            Gaussians ignore `beta`.
        sigma_x: First standard deviation, in pixels.
        sigma_y: Second standard deviation.
        rotation: Rotation in radians, from x towards y.
        beta: Exponent of generalised and plateau kernels.
    """
    none = torch.zeros_like(family, dtype=torch.bool)
    columns = (~none, none, size, family, sigma_x, sigma_y, rotation, beta, beta)
    return _whole(columns, torch.float64)


def sinc(size: Tensor, omega: Tensor) -> Tensor:
    """Sinc kernels `[B, 21, 21]` float64; arguments `[B]` on the CPU.

    Args:
        size: Odd sizes up to 21.
        omega: Cutoffs in (0, pi] radians per pixel.
    """
    return _whole(_sinc_columns(size, omega), torch.float64)


def blur_kernels(
    size: Tensor,
    sinc_flag: Tensor,
    family: Tensor,
    sigma_x: Tensor,
    sigma_y: Tensor,
    rotation: Tensor,
    beta: Tensor,
    omega: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """One kernel per row; arguments `[B]` on the CPU are the fields of `StageParameters`.

    Returns:
        `[B, 21, 21]`, computed in float64 and rounded to `dtype` (float32 or float64).

    Raises:
        TypeError: Another dtype.
    """
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"expected `dtype` float32 or float64, got {dtype}; write torch.float32")
    on = torch.ones_like(sinc_flag)
    columns = (on, sinc_flag, size, family, sigma_x, sigma_y, rotation, beta, omega)
    return _whole(columns, dtype)


_STAGE: Callable[[StageParameters], tuple[Tensor, ...]] = attrgetter(
    "blur", "sinc", "kernel_size", "family", "sigma_x", "sigma_y", "rotation", "beta", "omega"
)


def _sinc_columns(size: Tensor, omega: Tensor, on: Tensor | None = None) -> tuple[Tensor, ...]:
    # A sinc reads its size and cutoff alone.
    on = torch.ones_like(size, dtype=torch.bool) if on is None else on
    return on, on, size, size, omega, omega, omega, omega, omega


def _whole(columns: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    taps = KernelRows.of([columns]).shapes().taps()
    return torch.from_numpy(taps).view(-1, SIZE, SIZE).to(dtype)


def stage_kernels(
    stage: StageParameters | FinalParameters, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The kernels of a stage, `[B, 21, 21]`, one for every row whether it is blurred or not."""
    if isinstance(stage, FinalParameters):
        return _whole(_sinc_columns(stage.kernel_size, stage.omega), dtype)
    return _whole((torch.ones_like(stage.blur), *_STAGE(stage)[1:]), dtype)


@dataclass(frozen=True, eq=False)
class Kernels:
    """One blur kernel per row, on the host, and what is known about each.

    Attributes:
        taps: The kernels, `[B, 21, 21]` float32 on the CPU.
        sizes: Odd side of the square that holds all of a row's kernel but 2**-26 of it; 1 is a
            pulse, which leaves an image as it is.
        lines: Factors along the height and the width, `[B, 2, 21]` float32; zeros in rows that are
            not separable.
        separable: Whether a row's kernel is the product of its `lines`.
        mirrored: Whether a row's kernel equals its mirror image, left for right.
    """

    taps: Tensor
    sizes: tuple[int, ...]
    lines: Tensor
    separable: tuple[bool, ...]
    mirrored: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, rows: int | slice | Sequence[int]) -> Kernels:
        """Some rows, in the order given; an int gives a batch of one.

        Raises:
            IndexError: A row outside the batch.
        """
        if isinstance(rows, int):
            row = range(len(self))[rows]
            rows = slice(row, row + 1)
        if isinstance(rows, slice):
            return Kernels(
                self.taps[rows],
                self.sizes[rows],
                self.lines[rows],
                self.separable[rows],
                self.mirrored[rows],
            )
        index = list(rows)
        return Kernels(
            self.taps[index],
            tuple(self.sizes[i] for i in index),
            self.lines[index],
            tuple(self.separable[i] for i in index),
            tuple(self.mirrored[i] for i in index),
        )


def degradation_kernels(parameters: DegradationParameters) -> tuple[Kernels, Kernels, Kernels]:
    """The kernels of both stages and of the final filter, made together.

    Rows whose blur is off get a pulse.

    Args:
        parameters: The rows, on the CPU.
    """
    final = parameters.final
    last = _sinc_columns(final.kernel_size, final.omega, final.sinc)
    rows = KernelRows.of([_STAGE(parameters.first), _STAGE(parameters.second), last])
    shapes, upright = rows.shapes(), rows.upright()
    separable = rows.plain() & upright
    products = separable.nonzero()[0]
    lines = np.zeros((*separable.shape, 2, SIZE), np.float32)
    lines[products] = shapes.lines(products)
    stages = 3, separable.shape[0] // 3
    first, second, third = map(
        Kernels,
        map(torch.from_numpy, shapes.taps(np.float32).reshape(*stages, SIZE, SIZE)),
        map(tuple, shapes.sizes.reshape(stages).tolist()),
        map(torch.from_numpy, lines.reshape(*stages, 2, SIZE)),
        map(tuple, separable.reshape(stages).tolist()),
        map(tuple, upright.reshape(stages).tolist()),
    )
    return first, second, third
