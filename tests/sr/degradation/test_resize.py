from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mtlweight_sr.degradation import MODES, resize_by, resize_to

FACTORS = (0.15, 0.31, 0.5, 0.72, 0.999, 1.0, 1.0001, 1.2, 1.37, 1.5)


def align(mode: str) -> bool | None:
    return None if mode == "area" else False


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("size", [(64, 64), (61, 47)])
def test_a_factor_sets_size_and_step(
    photographs: Tensor, mode: str, factor: float, size: tuple[int, int]
) -> None:
    x = photographs[..., : size[0], : size[1]]
    got = resize_by(x, factor, mode)
    assert got.shape == (4, 3, math.floor(size[0] * factor), math.floor(size[1] * factor))
    expected = F.interpolate(
        x, scale_factor=factor, mode=mode, align_corners=align(mode), antialias=False
    )
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_bilinear_samples_at_the_inverse_factor() -> None:
    ramp = torch.arange(64.0).view(1, 1, 1, 64).expand(1, 3, 64, 64)
    factor = 0.37  # 23 pixels, where 64 * 0.37 = 23.68: the step is 1 / 0.37, not 64 / 23
    centres = (torch.arange(23) + 0.5) / factor - 0.5
    got = resize_by(ramp, factor, "bilinear")
    torch.testing.assert_close(got[0, 0, 0], centres, atol=1e-4, rtol=0)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_a_size_gives_what_opencv_gives(photographs: Tensor, mode: str) -> None:
    flag = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}[mode]
    x = photographs[0, :, :60, :50]
    got = resize_to(x[None], (45, 70), mode)[0]
    array = np.ascontiguousarray(x.permute(1, 2, 0).numpy())
    expected = torch.from_numpy(cv2.resize(array, (70, 45), interpolation=flag)).permute(2, 0, 1)
    assert (got - expected).abs().max() < 2e-5


def test_area_averages_whole_blocks(photographs: Tensor) -> None:
    got = resize_to(photographs, (64, 64), "area")
    expected = photographs.view(4, 3, 64, 4, 64, 4).mean((3, 5))
    torch.testing.assert_close(got, expected)


def test_nothing_to_do_changes_nothing(photographs: Tensor) -> None:
    for mode in MODES:
        assert torch.equal(resize_by(photographs, 1.0, mode), photographs)
        assert torch.equal(resize_to(photographs, (256, 256), mode), photographs)


def test_a_tiny_image_keeps_a_pixel() -> None:
    for mode in MODES:
        assert resize_by(torch.rand(1, 3, 4, 30), 0.15, mode).shape == (1, 3, 1, 4)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_bad_factors_are_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="`factor`"):
        resize_by(torch.zeros(1, 3, 8, 8), factor, "area")


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="lanczos"):
        resize_by(torch.zeros(1, 3, 8, 8), 0.5, "lanczos")
    with pytest.raises(ValueError, match="lanczos"):
        resize_to(torch.zeros(1, 3, 8, 8), (4, 4), "lanczos")
