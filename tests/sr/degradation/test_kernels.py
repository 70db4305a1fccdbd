from __future__ import annotations

import cv2
import kornia
import numpy as np
import pytest
import torch
from scipy import special

from mtlweight_sr.degradation import REALESRGAN_X4, draw_cube, draw_seeds, parameters_from_cube
from mtlweight_sr.degradation.kernels import blur_kernels, sinc, stage_kernels


def by_formula(
    size: int,
    is_sinc: bool,
    family: int,
    sx: float,
    sy: float,
    theta: float,
    beta: float,
    omega: float,
) -> np.ndarray:
    """One kernel, pixel by pixel, from the covariance matrix and scipy's Bessel function."""
    c, s = np.cos(theta), np.sin(theta)
    rotation = np.array([[c, -s], [s, c]])
    spread = np.diag([sx**2, sx**2 if family % 2 == 0 else sy**2])
    if family % 2 == 0:
        rotation = np.eye(2)
    inverse = np.linalg.inv(rotation @ spread @ rotation.T)
    kernel = np.zeros((21, 21))
    half = size // 2
    for y in range(-half, half + 1):
        for x in range(-half, half + 1):
            z = np.array([x, y])
            q = z @ inverse @ z
            r = np.hypot(x, y)
            if is_sinc:
                value = (
                    omega * special.j1(omega * r) / (2 * np.pi * r) if r else omega**2 / (4 * np.pi)
                )
            elif family < 2:
                value = np.exp(-q / 2)
            elif family < 4:
                value = np.exp(-(q**beta) / 2)
            else:
                value = 1 / (1 + q**beta)
            kernel[10 + y, 10 + x] = value
    return kernel / kernel.sum()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_every_family_follows_its_formula(dtype: torch.dtype, tolerance: float) -> None:
    p = parameters_from_cube(REALESRGAN_X4, draw_cube(range(150), 1), draw_seeds(range(150), 1))
    first = p.first
    assert len(first.family.unique()) == 6
    assert first.sinc.any()
    got = stage_kernels(first, dtype=dtype)
    assert got.dtype == dtype
    assert got.shape == (150, 21, 21)
    columns = zip(
        *(
            getattr(first, n).tolist()
            for n in (
                "kernel_size",
                "sinc",
                "family",
                "sigma_x",
                "sigma_y",
                "rotation",
                "beta",
                "omega",
            )
        ),
        strict=True,
    )
    expected = np.stack([by_formula(*row) for row in columns])
    assert np.abs(got.numpy() - expected).max() < tolerance


def test_final_sinc_follows_its_formula() -> None:
    size, omega = torch.tensor([7, 21, 13]), torch.tensor([1.1, 2.9, 3.1], dtype=torch.float64)
    expected = [
        by_formula(int(k), True, 0, 1, 1, 0, 1, float(w)) for k, w in zip(size, omega, strict=True)
    ]
    assert np.abs(sinc(size, omega).numpy() - np.stack(expected)).max() < 1e-10


def plain(size: int, sigma: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    one = torch.ones(1, dtype=torch.float64)
    return blur_kernels(
        torch.tensor([size]),
        torch.tensor([False]),
        torch.tensor([0]),
        sigma * one,
        9 * one,
        one,
        3 * one,
        one,
        dtype=dtype,
    )[0]


@pytest.mark.parametrize("size", [7, 13, 21])
@pytest.mark.parametrize("sigma", [0.2, 1.0, 3.0])
def test_plain_gaussian_is_that_of_opencv_and_kornia(size: int, sigma: float) -> None:
    margin = (21 - size) // 2
    kernel = plain(size, sigma)
    middle = kernel[margin : 21 - margin, margin : 21 - margin]
    assert kernel.sum().item() == pytest.approx(middle.sum().item(), abs=1e-15)
    line = cv2.getGaussianKernel(size, sigma)
    np.testing.assert_allclose(middle.numpy(), line @ line.T, atol=1e-12)
    theirs = kornia.filters.get_gaussian_kernel2d(
        (size, size), torch.tensor([[sigma, sigma]], dtype=torch.float64)
    )[0]
    torch.testing.assert_close(middle, theirs, atol=1e-12, rtol=0)


def test_rotation_turns_from_x_to_y() -> None:
    one = torch.ones(2, dtype=torch.float64)
    args = (torch.tensor([21, 21]), torch.tensor([False, False]), torch.tensor([1, 1]))
    kernel = blur_kernels(
        *args, 3 * one, 0.5 * one, torch.tensor([0.0, torch.pi / 4]), one, one, dtype=torch.float64
    )
    assert kernel[0, 10, 13] > 100 * kernel[0, 13, 10]  # theta 0: long along the width
    assert kernel[1, 13, 13] > 100 * kernel[1, 7, 13]  # 45 degrees: down and to the right


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_kernel_has_the_same_bits_in_any_batch(dtype: torch.dtype) -> None:
    p = parameters_from_cube(REALESRGAN_X4, draw_cube(range(67), 2), draw_seeds(range(67), 2))
    for stage in (p.first, p.second, p.final):
        together = stage_kernels(stage, dtype=dtype)
        torch.testing.assert_close(together.sum((1, 2)), torch.ones(67, dtype=dtype))
    alone = torch.cat([stage_kernels(p[i].first, dtype=dtype) for i in range(67)])
    assert torch.equal(alone, stage_kernels(p.first, dtype=dtype))


def test_half_precision_kernels_are_refused() -> None:
    with pytest.raises(TypeError, match="float16"):
        plain(7, 1.0, torch.float16)
