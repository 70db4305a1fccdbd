r"""Blur kernels, batched: Gaussian-like families and the sinc, `[B, 21, 21]`, every one of sum 1.

With $z=(x,y)$ on the integer grid centred on the kernel, $R(\theta)$ a rotation and
$q=z^\top(R\,\mathrm{diag}(\sigma_x^2,\sigma_y^2)\,R^\top)^{-1}z$:

- Gaussian $e^{-q/2}$; generalised Gaussian $e^{-q^\beta/2}$; plateau $1/(1+q^\beta)$;
- sinc $\omega J_1(\omega r)/(2\pi r)$ with $r=|z|$ and $\omega^2/4\pi$ at the centre: the ideal
  low-pass filter of radius $\omega$.

Outside its own odd size a kernel is zero. Source: Real-ESRGAN (2021), sections 3.1 and 3.4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlweight_sr.degradation.parameters import FinalParameters, StageParameters

__all__ = ["SIZE", "blur_kernels", "gaussian_like", "sinc", "stage_kernels"]

SIZE = 21
"""Side of the canvas that holds every kernel, in pixels."""


def _grid(like: Tensor) -> tuple[Tensor, Tensor]:
    """X (along the width) and y (along the height), each `[1, 21, 21]`."""
    axis = torch.arange(SIZE, dtype=like.dtype, device=like.device) - SIZE // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x[None], y[None]


def _normalised(values: Tensor, size: Tensor) -> Tensor:
    x, y = _grid(values)
    radius = (size.to(values)[:, None, None] - 1) / 2
    inside = (x.abs() <= radius) & (y.abs() <= radius)
    values = torch.where(inside, values, 0)
    # A running sum adds in one fixed order, so a row has the same bits alone and in any batch.
    total = values.flatten(1).cumsum(1)[:, -1]
    return values / total[:, None, None]


def gaussian_like(
    size: Tensor, family: Tensor, sigma_x: Tensor, sigma_y: Tensor, rotation: Tensor, beta: Tensor
) -> Tensor:
    """Kernels of the six families; arguments `[B]`, result `[B, 21, 21]` in their real dtype.

    Args:
        size: Odd sizes up to 21.
        family: Places in `FAMILIES`; isotropic ones ignore `sigma_y` and `rotation`, plain
            Gaussians ignore `beta`.
        sigma_x: First standard deviation, in pixels.
        sigma_y: Second standard deviation.
        rotation: Rotation in radians, from x towards y.
        beta: Exponent of generalised and plateau kernels.
    """
    isotropic = family % 2 == 0
    sigma_y = torch.where(isotropic, sigma_x, sigma_y)
    rotation = torch.where(isotropic, 0, rotation)
    beta = torch.where(family < 2, 1, beta)
    x, y = _grid(sigma_x)
    cos, sin = (t[:, None, None] for t in (rotation.cos(), rotation.sin()))
    along, across = x * cos + y * sin, y * cos - x * sin
    q = (along / sigma_x[:, None, None]) ** 2 + (across / sigma_y[:, None, None]) ** 2
    q = q ** beta[:, None, None]
    plateau = (family >= 4)[:, None, None]
    return _normalised(torch.where(plateau, 1 / (1 + q), torch.exp(-q / 2)), size)


def _bessel_j1(x: Tensor) -> Tensor:
    r"""Bessel's $J_1(x)=\frac1\pi\int_0^\pi\cos(\tau-x\sin\tau)\,d\tau$ by the midpoint rule.

    The integrand is periodic, so 48 points are exact to rounding for x up to 45, which covers every
    kernel; `torch.special.bessel_j1` is off by 5e-7 near 5 even in float64.
    """
    points = 48
    at = (torch.arange(points, dtype=x.dtype, device=x.device) + 0.5) * (math.pi / points)
    return torch.cos(at - x[..., None] * at.sin()).mean(-1)


def sinc(size: Tensor, omega: Tensor) -> Tensor:
    """Sinc kernels `[B, 21, 21]`; arguments `[B]`, `omega` in (0, pi] radians per pixel."""
    # One quadrant holds every radius; the others mirror it.
    side = torch.arange(SIZE // 2 + 1, dtype=omega.dtype, device=omega.device)
    radius = torch.sqrt(side[:, None] ** 2 + side**2)
    w = omega[:, None, None]
    quadrant = w * _bessel_j1(w * radius) / (2 * math.pi * radius.clamp_min(1))
    quadrant[:, 0, 0] = omega**2 / (4 * math.pi)
    mirror = (torch.arange(SIZE, device=omega.device) - SIZE // 2).abs()
    return _normalised(quadrant[:, mirror][:, :, mirror], size)


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
    """One kernel per row; arguments `[B]` are the fields of `StageParameters`.

    Returns:
        `[B, 21, 21]` in `dtype` (float32 or float64), on the device of the arguments, computed in
        that dtype.

    Raises:
        TypeError: Another dtype.
    """
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"expected `dtype` float32 or float64, got {dtype}; write torch.float32")
    reals = [t.to(dtype) for t in (sigma_x, sigma_y, rotation, beta)]
    kernels = gaussian_like(size, family, *reals)
    # Bessel functions are dear and few rows need them.
    kernels[sinc_flag] = sinc(size[sinc_flag], omega[sinc_flag].to(dtype))
    return kernels


def stage_kernels(
    stage: StageParameters | FinalParameters, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The kernels of a stage, `[B, 21, 21]`, one for every row whether it is blurred or not."""
    if isinstance(stage, FinalParameters):
        return sinc(stage.kernel_size, stage.omega.to(dtype))
    return blur_kernels(
        stage.kernel_size,
        stage.sinc,
        stage.family,
        stage.sigma_x,
        stage.sigma_y,
        stage.rotation,
        stage.beta,
        stage.omega,
        dtype=dtype,
    )
