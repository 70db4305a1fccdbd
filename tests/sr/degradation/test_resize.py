from __future__ import annotations

import importlib
import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mtlweight_sr.degradation.resize import resize_by, resize_to, scaled_size
from mtlweight_sr.degradation.space import MODES

resizing = importlib.import_module(resize_by.__module__)
FACTORS = (0.15, 0.31, 0.5, 0.72, 0.999, 1.0, 1.0001, 1.2, 1.37, 1.5)


def align(mode: str) -> bool | None:
    return None if mode == "area" else False


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("size", [(64, 64), (61, 47), (256, 239)])
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


PLANS = [
    ((61, 47), 0.15, "area"),
    ((64, 80), 1.37, "bicubic"),
    ((80, 90), 0.72, "bilinear"),
    ((17, 90), 1.0, "area"),
    ((3, 5), 1.2, "bilinear"),
    ((2, 9), 0.31, "bicubic"),
    ((80, 33), 1.5, "area"),
    ((40, 41), 1.0, "bicubic"),
    ((79, 90), 0.999, "bicubic"),
    ((1, 1), 1.5, "bilinear"),
]
SIZES = [size for size, _, _ in PLANS]
EACH_FACTOR = [factor for _, factor, _ in PLANS]
EACH_MODE = [mode for _, _, mode in PLANS]
TARGETS = [(30, 7), (100, 80), (80, 90), (17, 91), (1, 1)]
TARGETS += [(5, 5), (33, 80), (40, 41), (9, 120), (3, 4)]


@pytest.fixture(scope="module")
def ragged(photographs: Tensor) -> Tensor:
    """Images of `SIZES` on one canvas that is full of rubbish."""
    canvas = 50 * torch.randn(10, 3, 80, 90, generator=torch.Generator().manual_seed(0))
    for i, (height, width) in enumerate(SIZES):
        canvas[i, :, :height, :width] = photographs[i % 4, :, 50 : 50 + height, 60 : 60 + width]
    return canvas


def content(images: Tensor, i: int) -> Tensor:
    return images[i : i + 1, :, : SIZES[i][0], : SIZES[i][1]]


def assert_rows(got: Tensor, expected: list[Tensor], tolerance: float) -> None:
    height, width = (max(x.shape[axis] for x in expected) for axis in (-2, -1))
    assert got.shape == (len(expected), 3, height, width)
    for row, one in zip(got, expected, strict=True):
        h, w = one.shape[-2:]
        torch.testing.assert_close(row[:, :h, :w], one[0], atol=tolerance, rtol=0)
        assert row[:, h:].count_nonzero() == row[..., w:].count_nonzero() == 0


def test_each_image_has_its_own_factor_and_mode(ragged: Tensor) -> None:
    got = resize_by(ragged, EACH_FACTOR, EACH_MODE, SIZES)
    alone = [
        resize_by(content(ragged, i), factor, mode) for i, (_, factor, mode) in enumerate(PLANS)
    ]
    for (size, factor, _), one in zip(PLANS, alone, strict=True):
        assert one.shape[-2:] == scaled_size(size, factor)
    assert_rows(got, alone, 0)


def test_each_image_has_its_own_size_to_reach(ragged: Tensor) -> None:
    got = resize_to(ragged, TARGETS, EACH_MODE, SIZES)
    alone = [resize_to(content(ragged, i), TARGETS[i], EACH_MODE[i]) for i in range(10)]
    assert_rows(got, alone, 0)


def test_all_rows_at_once_give_what_each_gives_alone(
    ragged: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of accelerators, on the CPU."""
    factors = resize_by(ragged, EACH_FACTOR, EACH_MODE, SIZES)
    targets = resize_to(ragged, TARGETS, EACH_MODE, SIZES)
    monkeypatch.setattr(resizing, "_one_by_one", resizing._together)
    for expected, got in (
        (factors, resize_by(ragged, EACH_FACTOR, EACH_MODE, SIZES)),
        (targets, resize_to(ragged, TARGETS, EACH_MODE, SIZES)),
    ):
        torch.testing.assert_close(got, expected, atol=3e-6, rtol=0)
    kept = resize_by(ragged, EACH_FACTOR, EACH_MODE, SIZES)
    for i in (i for i, factor in enumerate(EACH_FACTOR) if factor == 1):
        height, width = SIZES[i]
        assert torch.equal(kept[i, :, :height, :width], ragged[i, :, :height, :width])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(64, 64), (61, 47), (255, 203)])
def test_matrices_are_those_of_torch(photographs: Tensor, mode: str, size: tuple[int, int]) -> None:
    x = photographs[:1, :, : size[0], : size[1]]
    for factor in FACTORS:
        for kept in (factor, None):
            plan = resizing._Plan(size, scaled_size(size, factor), mode, kept)
            got, expected = resizing._together(x, [plan]), plan.apply(x)
            torch.testing.assert_close(got, expected, atol=5e-6, rtol=0)


def test_accelerators_are_never_waited_for(ragged: Tensor) -> None:
    """A tensor without data can be computed with, but not read."""
    canvas = ragged.to("meta")
    assert resize_by(canvas, EACH_FACTOR, EACH_MODE, SIZES).shape == (10, 3, 120, 109)
    assert resize_to(canvas, TARGETS, EACH_MODE, SIZES).shape == (10, 3, 100, 120)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_agrees_and_is_not_waited_for(ragged: Tensor) -> None:
    images = ragged.cuda()
    torch.cuda.set_sync_debug_mode("error")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cuda"):
            got = resize_by(images, EACH_FACTOR, EACH_MODE, SIZES)
    finally:
        torch.set_float32_matmul_precision(before)
        torch.cuda.set_sync_debug_mode("default")
    expected = resize_by(ragged, EACH_FACTOR, EACH_MODE, SIZES)
    torch.testing.assert_close(got.cpu(), expected, atol=5e-5, rtol=0)


def test_gradients_pass_one_by_one_and_together(ragged: Tensor) -> None:
    images = ragged.clone().requires_grad_()
    gradients = []
    for way in (resizing._one_by_one, resizing._together):
        plans = [resizing._Plan(size, scaled_size(size, f), mode, f) for size, f, mode in PLANS[:4]]
        (gradient,) = torch.autograd.grad(way(images[:4], plans).square().sum(), images)
        gradients.append(torch.stack([content(gradient, i).sum() for i in range(4)]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(150, 190), (400, 60), (256, 256)])
def test_large_images_have_the_gradients_of_torch(
    photographs: Tensor, mode: str, size: tuple[int, int]
) -> None:
    images = photographs[:1, :, :203].clone().requires_grad_()
    expected = F.interpolate(images, size=size, mode=mode, align_corners=align(mode))
    got = resize_to(images, size, mode)
    towards = torch.randn(got.shape, generator=torch.Generator().manual_seed(0))
    gradients = [torch.autograd.grad(x, images, towards)[0] for x in (got, expected)]
    torch.testing.assert_close(*gradients, atol=5e-5, rtol=0)


def test_lists_of_another_length_are_refused() -> None:
    x = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match="`factor` for all or one per image, got 3 for 2"):
        resize_by(x, [0.5] * 3, "area")
    with pytest.raises(ValueError, match="`mode` for all or one per image, got 1 for 2"):
        resize_by(x, 0.5, ["area"])
    with pytest.raises(ValueError, match="`size` for all or one per image, got 1 for 2"):
        resize_to(x, [(4, 4)], "area")
    with pytest.raises(ValueError, match="`sizes` from 1x1 to the canvas of 8x8, got 9x8"):
        resize_to(x, (4, 4), "area", [(8, 8), (9, 8)])
    with pytest.raises(ValueError, match="at least one image"):
        resize_to(x[:0], (4, 4), "area")
    with pytest.raises(ValueError, match="at least 1x1, got 0x4"):
        resize_to(x, (0, 4), "area")
