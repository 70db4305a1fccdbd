from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from mtlweight_sr.degradation import (
    DASR_WEAK,
    MODES,
    REALESRGAN_X2,
    REALESRGAN_X4,
    DegradationParameters,
    DegradationSpace,
    degrade,
    draw_cube,
    draw_seeds,
    jpeg,
    parameters_from_cube,
    stages,
)
from mtlweight_sr.degradation.kernels import stage_kernels
from mtlweight_sr.degradation.noise import normal_fields
from tests.sr.degradation.simulated import DEVICE, simulated, to_device, to_host

COMPAT: dict[str, Any] = {"libjpeg": None, "basicsr": "realesrgan"}
OFF = {"on": 0.0}
IDENTITY = {"up": 0.0, "down": 0.0, "keep": 1.0}


def drawn(n: int, space: DegradationSpace = REALESRGAN_X4, seed: int = 0) -> DegradationParameters:
    return parameters_from_cube(space, draw_cube(range(n), seed), draw_seeds(range(n), seed))


def changed(**stages: dict) -> DegradationSpace:
    document = REALESRGAN_X4.model_dump()
    for stage, parts in stages.items():
        for part, options in parts.items():
            if isinstance(options, dict):
                document[stage][part].update(options)
            else:
                document[stage][part] = options
    return DegradationSpace.model_validate(document)


NOISELESS = changed(first={"noise": OFF}, second={"noise": OFF})


@pytest.mark.parametrize("space", [REALESRGAN_X4, REALESRGAN_X2])
@pytest.mark.parametrize("mode", ["libjpeg", "basicsr"])
def test_photographs_stay_recognisable(
    photographs: Tensor, space: DegradationSpace, mode: str
) -> None:
    hr = photographs.repeat(6, 1, 1, 1)
    lr = degrade(hr, drawn(24, space), compat=COMPAT[mode])
    scale = space.scale
    assert lr.shape == (24, 3, 256 // scale, 256 // scale)
    assert lr.dtype == torch.float32
    assert lr.min() >= 0
    assert lr.max() <= 1
    assert torch.equal((lr * 255).round() / 255, lr)
    up = F.interpolate(lr, scale_factor=scale, mode="bicubic").clamp(0, 1)
    psnr = -10 * (up - hr).square().mean((1, 2, 3)).log10()
    assert 20 < psnr.mean().item() < 26
    assert psnr.min().item() > 13


def by_hand(image: Tensor, p: DegradationParameters, codec: Any) -> np.ndarray:
    """One sample without noise: OpenCV's filter, torch's resize, in the published order."""

    def filtered(x: np.ndarray, kernel: Tensor) -> np.ndarray:
        return cv2.filter2D(x, -1, kernel.float().numpy(), borderType=cv2.BORDER_REFLECT_101)

    def resized(x: np.ndarray, mode: Tensor, **how: object) -> np.ndarray:
        name = MODES[int(mode)]
        align = None if name == "area" else False
        tensor = torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1)[None]
        out = F.interpolate(tensor, mode=name, align_corners=align, **how)  # type: ignore[arg-type]
        return np.ascontiguousarray(out[0].permute(1, 2, 0).numpy())

    def compressed(x: np.ndarray, quality: Tensor) -> np.ndarray:
        tensor = torch.from_numpy(np.clip(x, 0, 1)).permute(2, 0, 1)[None].contiguous()
        return np.ascontiguousarray(jpeg(tensor, quality, codec)[0].permute(1, 2, 0).numpy())

    kernels = [stage_kernels(s, dtype=torch.float64)[0] for s in (p.first, p.second, p.final)]
    x = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    lr = x.shape[0] // p.scale, x.shape[1] // p.scale
    x = filtered(x, kernels[0])
    x = resized(x, p.first.resize_mode, scale_factor=float(p.first.resize_scale))
    x = compressed(x, p.first.jpeg_quality)
    if p.second.blur:
        x = filtered(x, kernels[1])
    factor = float(p.second.resize_scale)
    x = resized(x, p.second.resize_mode, size=(int(lr[0] * factor), int(lr[1] * factor)))
    x = np.clip(x, 0, 1)

    def finished(x: np.ndarray) -> np.ndarray:
        x = resized(x, p.final.resize_mode, size=lr)
        return filtered(x, kernels[2]) if p.final.sinc else x

    if p.final.before_jpeg:
        x = compressed(finished(x), p.second.jpeg_quality)
    else:
        x = finished(compressed(x, p.second.jpeg_quality))
    return np.clip(np.round(x * 255), 0, 255)


@pytest.mark.parametrize("mode", ["libjpeg", "basicsr"])
def test_the_order_is_the_published_one(photographs: Tensor, mode: str) -> None:
    p = drawn(40, NOISELESS, seed=3)
    assert p.final.before_jpeg.any()
    assert (~p.final.before_jpeg).any()
    images = photographs[..., :128, :192].repeat(10, 1, 1, 1)
    got = (degrade(images, p, compat=COMPAT[mode]) * 255).round()
    for i in range(40):
        difference = np.abs(by_hand(images[i], p[i], mode) - got[i].permute(1, 2, 0).numpy())
        # A level or a coefficient at a tie may fall on either side and moves one block.
        assert difference.mean() < 0.05, (i, difference.mean(), p.describe(i))


def test_clean_settings_resize_alone(photographs: Tensor) -> None:
    space = changed(
        first={"blur": OFF, "resize": IDENTITY, "noise": OFF, "jpeg": OFF},
        second={"blur": OFF, "resize": {**IDENTITY, "modes": (1, 0, 0)}, "noise": OFF, "jpeg": OFF},
        final={"sinc": 0.0},
    )
    expected = (F.avg_pool2d(photographs, 4) * 255).round() / 255
    assert torch.equal(degrade(photographs, drawn(4, space)), expected)


@pytest.mark.parametrize("kind", ["gaussian", "poisson"])
@pytest.mark.parametrize("stage", ["first", "second"])
def test_noise_arrives_in_the_image(kind: str, stage: str) -> None:
    quiet = {"blur": OFF, "resize": {**IDENTITY, "modes": (1, 0, 0)}, "noise": OFF, "jpeg": OFF}
    loud = {"on": 1.0, "gaussian": float(kind == "gaussian"), "sigma": (20.0, 20.0)}
    noisy = {**quiet, "noise": {**loud, "scale": (1.0, 1.0), "gray": 0.0}}
    other = "second" if stage == "first" else "first"
    space = changed(**{stage: noisy, other: quiet, "final": {"sinc": 0.0}})
    hr = torch.full((2, 3, 256, 256), 128 / 255)
    residual = degrade(hr, drawn(2, space), poisson_levels=256) - hr[..., ::4, ::4]
    sigma = 20 / 255 if kind == "gaussian" else (128 / 255 / 256) ** 0.5
    if stage == "first":
        sigma /= 4  # sixteen pixels are averaged
    assert residual.std().item() == pytest.approx(sigma, rel=0.05)
    assert abs(residual.mean().item()) < 5 * sigma / residual.numel() ** 0.5 + 0.1 / 255


def test_the_two_stages_draw_different_fields() -> None:
    """Where both stages have the same size, equal fields would add up to twice the deviation."""
    loud = {"gaussian": 1.0, "sigma": (10.0, 10.0), "gray": 0.0}
    quiet = {"blur": OFF, "jpeg": OFF, "noise": loud}
    quarter = {"up": 0.0, "down": 1.0, "keep": 0.0, "down_range": (0.25, 0.25)}
    space = changed(
        first={**quiet, "resize": quarter},
        second={**quiet, "resize": IDENTITY},
        final={"sinc": 0.0},
    )
    hr = torch.full((4, 3, 256, 256), 0.5)
    residual = degrade(hr, drawn(4, space)) - 0.5
    assert residual.std().item() == pytest.approx(2**0.5 * 10 / 255, rel=0.03)


def test_noise_is_cut_off_before_anything_else() -> None:
    """Black plus noise, averaged: half of the noise is gone before the average, not after it."""
    loud = {"gaussian": 1.0, "sigma": (20.0, 20.0), "gray": 0.0}
    off = {"blur": OFF, "resize": {**IDENTITY, "modes": (1, 0, 0)}, "jpeg": OFF}
    space = changed(first={**off, "noise": loud}, second={**off, "noise": OFF}, final={"sinc": 0.0})
    mean = degrade(torch.zeros(2, 3, 128, 128), drawn(2, space)).mean().item()
    assert mean == pytest.approx(20 / 255 / (2 * torch.pi) ** 0.5, rel=0.03)


@pytest.mark.parametrize("mode", ["libjpeg", "basicsr"])
def test_a_sample_is_the_same_alone_and_in_any_batch(photographs: Tensor, mode: str) -> None:
    hr = photographs[..., :96, :64].repeat(6, 1, 1, 1)
    p = drawn(24, seed=5)
    together = degrade(hr, p, compat=COMPAT[mode])
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(degrade(hr[order], p[order], compat=COMPAT[mode]), together[order])  # type: ignore[arg-type]
    for i in range(24):
        assert torch.equal(degrade(hr[i : i + 1], p[i], compat=COMPAT[mode])[0], together[i])  # type: ignore[arg-type]


def test_nothing_outside_the_arguments_matters(photographs: Tensor) -> None:
    p = drawn(4)
    hr = photographs.clone()
    torch.manual_seed(0)
    before = degrade(hr, p)
    torch.manual_seed(1)
    assert torch.equal(degrade(hr, p), before)
    assert torch.equal(hr, photographs)


def test_noise_follows_the_seed(photographs: Tensor) -> None:
    hr = photographs[:1].repeat(2, 1, 1, 1)
    cube = draw_cube([0, 0], 0)
    keys = {"low bits": (5, 6), "high bits": (5, 5 + 2**40)}
    for pair in keys.values():
        lr = degrade(hr, parameters_from_cube(REALESRGAN_X4, cube, torch.tensor(pair)))
        assert not torch.equal(lr[0], lr[1])
    same = degrade(hr, parameters_from_cube(REALESRGAN_X4, cube, torch.tensor([5, 5])))
    assert torch.equal(same[0], same[1])


def test_a_generator_draws_in_batch_order(photographs: Tensor) -> None:
    p = drawn(4)
    a, b = (degrade(photographs, p, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    assert not torch.equal(a, b)
    assert torch.equal(a, degrade(photographs, p, generator=torch.Generator().manual_seed(1)))
    generator = torch.Generator().manual_seed(1)
    pieces = [degrade(photographs[i : i + 1], p[i], generator=generator) for i in range(4)]
    assert torch.equal(torch.cat(pieces), a)


def test_the_second_noise_does_not_depend_on_the_first(photographs: Tensor) -> None:
    """Switching the first noise off leaves the field of the second untouched."""
    last = {"blur": OFF, "resize": IDENTITY, "jpeg": OFF, "noise": {"gaussian": 1.0}}
    flat = torch.full_like(photographs, 0.5)
    first_off = {"noise": {"sigma": (0.0, 0.0), "gaussian": 1.0}, "jpeg": OFF}
    zero = changed(first=first_off, second=last)
    none = changed(first={"noise": OFF, "jpeg": OFF}, second=last)
    assert torch.equal(degrade(flat, drawn(4, zero)), degrade(flat, drawn(4, none)))


def published(p: DegradationParameters) -> DegradationParameters:
    """Half of the rows with one stage alone, as DASR has them."""
    weak = parameters_from_cube(DASR_WEAK, p.cube, p.seed)
    rows = torch.arange(len(p)) % 2 == 0

    def mixed(a: Any, b: Any) -> Any:
        if isinstance(a, Tensor):
            return torch.where(rows.view(-1, *[1] * (a.ndim - 1)), a, b)
        if dataclasses.is_dataclass(a):
            names = [field.name for field in dataclasses.fields(a)]
            return type(a)(**{n: mixed(getattr(a, n), getattr(b, n)) for n in names})  # type: ignore[operator]
        return a

    return mixed(p, weak)


def host_fields(*args: Any, device: torch.device | str = "cpu", **options: Any) -> Tensor:
    """The CPU's noise on the simulated device."""
    assert device == DEVICE
    return to_device(normal_fields(*args, **options))


@pytest.mark.parametrize("buckets", [None, 1, 3])
@pytest.mark.parametrize("mode", ["libjpeg", "basicsr"])
def test_an_accelerator_makes_what_a_cpu_makes(
    photographs: Tensor, monkeypatch: pytest.MonkeyPatch, mode: str, buckets: int | None
) -> None:
    """Rows of many sizes in one tensor, and never a wait: what waits is refused."""
    hr = photographs[..., :96, :128].repeat(4, 1, 1, 1)
    p = published(drawn(16, seed=7))
    alone = degrade(hr, p, compat=COMPAT[mode])
    monkeypatch.setattr(stages, "normal_fields", host_fields)
    with simulated():
        lr = to_host(degrade(to_device(hr), p, compat=COMPAT[mode], buckets=buckets))
    levels = (lr - alone).abs() * 255
    # Filters and resizes that round differently move a value at a tie to the next level, and a
    # JPEG coefficient at a tie the pixels of a block.
    assert (levels > 0.5).float().mean() < 0.02
    assert (levels > 1.5).float().mean() < 0.005
    assert levels.mean() < 0.02


@pytest.mark.parametrize("poisson_levels", ["auto", 256])
def test_an_accelerator_draws_its_noise_without_waiting(
    photographs: Tensor, poisson_levels: Any
) -> None:
    p = drawn(8, seed=7)
    hr = photographs.repeat(2, 1, 1, 1)
    with simulated():
        lr, again = (
            to_host(degrade(to_device(hr), p, poisson_levels=poisson_levels)) for _ in range(2)
        )
    alone = degrade(hr, p, poisson_levels=poisson_levels)
    assert torch.equal(lr, again)
    assert not torch.equal(lr, alone)
    difference = lr - alone
    assert difference.mean().abs() < 0.01
    assert difference.std() < 0.2


@pytest.mark.parametrize("buckets", [None, 1, 3])
def test_a_generator_of_an_accelerator_draws_all_noise(
    photographs: Tensor, buckets: int | None
) -> None:
    """What it draws follows from its state, not from the rows' own seeds, and moves it on."""
    hr = photographs[..., :64, :96].repeat(3, 1, 1, 1)
    p = drawn(12, seed=5)
    other = dataclasses.replace(p, seed=p.seed + 1)
    with simulated():
        generator = torch.Generator(DEVICE).manual_seed(3)
        first, later = (
            to_host(degrade(to_device(hr), p, generator=generator, buckets=buckets))
            for _ in range(2)
        )
        generator.manual_seed(3)
        again = to_host(degrade(to_device(hr), other, generator=generator, buckets=buckets))
        with pytest.raises(ValueError, match=r"`generator`.*maia"):
            degrade(to_device(hr), p, generator=torch.Generator("cpu"))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    difference = first - degrade(hr, p)
    assert difference.mean().abs() < 0.01
    assert difference.std() < 0.2


@pytest.mark.parametrize("buckets", [1, 3, 10, 20])
def test_buckets_change_nothing_on_a_cpu(photographs: Tensor, buckets: int) -> None:
    hr = photographs[:, :, :64, :96].repeat(3, 1, 1, 1)[:10]
    p = published(drawn(10, seed=2))
    assert torch.equal(degrade(hr, p, buckets=buckets), degrade(hr, p))


def different_sizes(photographs: Tensor) -> list[Tensor]:
    corners = [(64, 96), (128, 64), (4, 8), (100, 36), (64, 96), (8, 200), (256, 12), (20, 20)]
    return [image[:, :h, :w] for image, (h, w) in zip([*photographs] * 2, corners, strict=True)]


@pytest.mark.parametrize("buckets", [None, 1, 3])
def test_images_of_different_sizes(photographs: Tensor, buckets: int | None) -> None:
    hr = different_sizes(photographs)
    p = drawn(8, seed=4)
    lr = degrade(hr, p, buckets=buckets)
    for i, image in enumerate(lr):
        assert torch.equal(image, degrade(hr[i][None], p[i])[0])


def test_images_of_different_sizes_on_an_accelerator(photographs: Tensor) -> None:
    hr = different_sizes(photographs)
    p = drawn(8, NOISELESS, seed=4)
    with simulated():
        lr = [to_host(image) for image in degrade([to_device(image) for image in hr], p)]
    for image, alone in zip(lr, degrade(hr, p), strict=True):
        assert image.shape == alone.shape
        assert (image - alone).abs().mean() < 0.2 / 255


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes that torch holds during a call, what was there before left out."""
    call()  # what is kept from call to call is there before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    del result
    return max(accumulate(change for _, change in changes))


@pytest.mark.parametrize(("batch", "side"), [(12, 192), (16, 128)])
def test_memory_is_three_batches_at_most(photographs: Tensor, batch: int, side: int) -> None:
    hr = photographs[..., :side, :side].repeat(4, 1, 1, 1)[:batch].contiguous()
    p = drawn(batch, seed=batch)
    assert peak_bytes(lambda: degrade(hr, p)) < 1.5 * 4 * hr.numel()
    with simulated():
        there = to_device(hr)
        assert peak_bytes(lambda: degrade(there, p)) < 3 * 4 * hr.numel()


@pytest.mark.parametrize("size", [(16, 16), (4, 4), (16, 64), (100, 36)])
def test_small_and_oblong_images(photographs: Tensor, size: tuple[int, int]) -> None:
    hr = photographs[..., : size[0], : size[1]].repeat(10, 1, 1, 1)
    lr = degrade(hr, drawn(40, seed=9))
    assert lr.shape == (40, 3, size[0] // 4, size[1] // 4)
    assert lr.isfinite().all()


@pytest.mark.parametrize("value", [0.0, 128 / 255, 1.0])
def test_flat_images(value: float) -> None:
    flat = torch.full((16, 3, 64, 64), value)
    for mode in ("libjpeg", "basicsr"):
        lr = degrade(flat, drawn(16), compat=COMPAT[mode])
        assert lr.isfinite().all()
    # Without noise nothing is left to see.
    clean = degrade(flat, drawn(16, NOISELESS))
    assert (clean - value).abs().max() < 1.5 / 255


@pytest.mark.parametrize("mode", ["libjpeg", "basicsr"])
@pytest.mark.parametrize("quality", [1.0, 100.0])
def test_the_ends_of_quality(photographs: Tensor, mode: str, quality: float) -> None:
    ends = {"jpeg": {"quality": (quality, quality)}}
    lr = degrade(photographs, drawn(4, changed(first=ends, second=ends)), compat=COMPAT[mode])
    assert lr.isfinite().all()


def test_autocast_changes_nothing(photographs: Tensor) -> None:
    p = drawn(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = degrade(photographs, p)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, degrade(photographs, p))


def test_no_images_no_work() -> None:
    assert degrade([], drawn(0)) == []
    assert degrade(torch.zeros(0, 3, 32, 32), drawn(0)).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"float32, got {dtype}"):
        degrade(torch.zeros(1, 3, 16, 16, dtype=dtype), drawn(1))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((3, 16, 16), r"\[B, 3, H, W\], got \[3, 16, 16\]"),
        ((1, 1, 16, 16), r"got \[1, 1, 16, 16\]"),
        ((2, 3, 16, 16), "1 rows for 2 images"),
        ((1, 3, 18, 16), "18x16"),
        ((1, 3, 16, 0), "16x0"),
    ],
)
def test_other_shapes_are_refused(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        degrade(torch.zeros(shape), drawn(1))


@pytest.mark.parametrize(
    ("value", "words"), [(1.01, "1.01"), (-0.1, "-0.1"), (float("nan"), "nan")]
)
def test_other_values_are_refused(value: float, words: str) -> None:
    hr = torch.zeros(1, 3, 16, 16)
    hr[0, 1, 2, 3] = value
    with pytest.raises(ValueError, match=words):
        degrade(hr, drawn(1))


def test_unknown_options_are_refused() -> None:
    hr = torch.zeros(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"`compat`.*esrgan"):
        degrade(hr, drawn(1), compat="esrgan")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`poisson_levels`.*128"):
        degrade(hr, drawn(1), poisson_levels=128)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`poisson_levels`.*'realesrgan'.*256"):
        degrade(hr, drawn(1), compat="realesrgan", poisson_levels=256)
    with pytest.raises(ValueError, match=r"`buckets`.*got 0"):
        degrade(hr, drawn(1), buckets=0)
    with pytest.raises(ValueError, match=r"`generator`.*cpu"):
        degrade(hr.to("meta"), drawn(1), generator=torch.Generator())


def test_images_of_a_sequence_are_refused_one_by_one() -> None:
    good = torch.zeros(3, 16, 16)
    with pytest.raises(ValueError, match=r"images \[3, H, W\], got one of \[1, 3, 16, 16\]"):
        degrade([good, good[None]], drawn(2))
    with pytest.raises(TypeError, match="uint8"):
        degrade([good, good.byte()], drawn(2))
    with pytest.raises(ValueError, match="18x16"):
        degrade([good, torch.zeros(3, 18, 16)], drawn(2))
    with pytest.raises(ValueError, match="from 0 to 2"):
        degrade([good, good + torch.tensor(2.0) * (torch.arange(16) == 3)], drawn(2))
    with pytest.raises(ValueError, match="one device"):
        degrade([good, good.to("meta")], drawn(2))
    with pytest.raises(ValueError, match="1 rows for 2 images"):
        degrade([good, good], drawn(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("compat", [None, "realesrgan"])
def test_the_default_precision_of_torch_changes_nothing(
    photographs: Tensor, dtype: torch.dtype, compat: Any
) -> None:
    parameters = drawn(8)
    hr = photographs[:1].expand(8, -1, -1, -1)[..., :64, :64]
    expected = degrade(hr, parameters, compat=compat)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        found = degrade(hr, parameters, compat=compat)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, expected)
