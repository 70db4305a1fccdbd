from __future__ import annotations

from dataclasses import replace

import cv2
import kornia
import numpy as np
import pytest
import torch
from scipy import special

from mtlweight_sr.degradation import REALESRGAN_X4, draw_cube, draw_seeds, parameters_from_cube
from mtlweight_sr.degradation.kernels import (
    blur_kernels,
    degradation_kernels,
    gaussian_like,
    sinc,
    stage_kernels,
)


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


def test_all_stages_together_are_the_stages_alone() -> None:
    p = parameters_from_cube(REALESRGAN_X4, draw_cube(range(80), 4), draw_seeds(range(80), 4))
    made = degradation_kernels(p)
    pulse = torch.zeros(21, 21)
    pulse[10, 10] = 1
    for stage, kernels in zip((p.first, p.second, p.final), made, strict=True):
        on = stage.sinc if stage is p.final else stage.blur
        expected = torch.where(on[:, None, None], stage_kernels(stage), pulse)
        assert torch.equal(kernels.taps, expected)
        sizes = torch.tensor(kernels.sizes)
        assert (sizes[~on] == 1).all()
        # A kernel so narrow that nothing but its centre is left is a pulse too.
        assert ((expected[sizes == 1] - pulse).abs() < 2**-26).all()
    assert not p.second.blur.all()


def test_what_is_known_of_a_kernel_is_true() -> None:
    p = parameters_from_cube(REALESRGAN_X4, draw_cube(range(120), 5), draw_seeds(range(120), 5))
    for kernels in degradation_kernels(p):
        for i, size in enumerate(kernels.sizes):
            taps = kernels.taps[i].double()
            inside = torch.zeros(21, 21, dtype=torch.bool)
            inside[10 - size // 2 : 11 + size // 2, 10 - size // 2 : 11 + size // 2] = True
            assert taps[~inside].abs().sum() <= 2**-26 * taps.abs().sum()
            if size > 1:
                inside[10 - size // 2 + 1 : 10 + size // 2, 10 - size // 2 + 1 : 10 + size // 2] = 0
                assert taps[inside].abs().sum() > 0
            if kernels.separable[i]:
                vertical, horizontal = kernels.lines[i].double()
                assert (torch.outer(vertical, horizontal) - taps).abs().max() < 1e-7
            if kernels.mirrored[i]:
                assert torch.equal(taps, taps.flip(1))
    first = degradation_kernels(p)[0]
    plain_rows = ~p.first.sinc & (p.first.family == 0)
    assert first.separable == tuple(plain_rows.tolist())
    assert first.mirrored == tuple((p.first.sinc | (p.first.family % 2 == 0)).tolist())


def test_small_widths_need_small_kernels() -> None:
    """A Gaussian is cut where float32 no longer sees it: 5.7 sigma on either side."""
    p = parameters_from_cube(REALESRGAN_X4, draw_cube(range(300), 6), draw_seeds(range(300), 6))
    rows = (p.first.kernel_size == 21) & ~p.first.sinc & (p.first.family == 0)
    kernels = degradation_kernels(p)[0]
    narrow = [i for i in rows.nonzero()[:, 0].tolist() if p.first.sigma_x[i] < 1.5]
    assert narrow
    for i in narrow:
        assert abs(kernels.sizes[i] // 2 - 5.7 * float(p.first.sigma_x[i])) < 1.5


def test_upright_gaussians_are_separable() -> None:
    p = parameters_from_cube(REALESRGAN_X4, draw_cube(range(60), 7), draw_seeds(range(60), 7))
    kind = torch.ones_like(p.first.family)
    upright = replace(
        p.first,
        family=kind,
        sinc=torch.zeros_like(p.first.sinc),
        rotation=torch.zeros_like(p.first.rotation),
    )
    kernels = degradation_kernels(replace(p, first=upright))[0]
    assert all(kernels.separable)
    assert all(kernels.mirrored)
    products = kernels.lines[:, 0, :, None] * kernels.lines[:, 1, None]
    assert (products - kernels.taps).abs().max() < 1e-7


def test_rows_are_chosen_together() -> None:
    p = parameters_from_cube(REALESRGAN_X4, draw_cube(range(9), 8), draw_seeds(range(9), 8))
    kernels = degradation_kernels(p)[0]
    for rows, index in (([4, 0, 8], [4, 0, 8]), (slice(2, 7, 2), [2, 4, 6]), (-1, [8]), ([], [])):
        some = kernels[rows]
        assert len(some) == len(index)
        assert torch.equal(some.taps, kernels.taps[index])
        assert torch.equal(some.lines, kernels.lines[index])
        for name in ("sizes", "separable", "mirrored"):
            assert getattr(some, name) == tuple(getattr(kernels, name)[i] for i in index)
    with pytest.raises(IndexError):
        kernels[9]


def test_rows_alone_have_the_bits_of_all_stages_together() -> None:
    p = parameters_from_cube(REALESRGAN_X4, draw_cube(range(31), 9), draw_seeds(range(31), 9))
    together = degradation_kernels(p)
    for i in range(31):
        for mine, theirs in zip(degradation_kernels(p[i]), together, strict=True):
            row = theirs[i]
            assert torch.equal(mine.taps, row.taps)
            assert torch.equal(mine.lines, row.lines)
            assert (mine.sizes, mine.separable) == (row.sizes, row.separable)


def test_no_rows_have_no_kernels() -> None:
    none = parameters_from_cube(REALESRGAN_X4, draw_cube(range(3), 1), draw_seeds(range(3), 1))[:0]
    assert [len(kernels) for kernels in degradation_kernels(none)] == [0, 0, 0]


def test_families_alone_are_those_of_a_stage() -> None:
    p = parameters_from_cube(REALESRGAN_X4, draw_cube(range(40), 2), draw_seeds(range(40), 2)).first
    columns = (p.kernel_size, p.family, p.sigma_x, p.sigma_y, p.rotation, p.beta)
    alone = gaussian_like(*columns)
    whole = stage_kernels(p, dtype=torch.float64)
    assert torch.equal(alone[~p.sinc], whole[~p.sinc])
