from __future__ import annotations

import io
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mtlweight_sr.degradation.jpeg import JpegMode, jpeg
from mtlweight_sr.degradation.jpeg import _together as all_rows_at_once


def through_pil(image: Tensor, quality: int) -> np.ndarray:
    array = (image * 255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(file, "JPEG", quality=quality, subsampling=2)
    return np.asarray(Image.open(file)).astype(int)


def levels(image: Tensor) -> np.ndarray:
    return (image * 255).round().permute(1, 2, 0).numpy().astype(int)


def distance(images: Tensor, quality: int) -> np.ndarray:
    """|ours - Pillow's| in levels, `[B, H, W, 3]`."""
    got = jpeg(images, torch.full((len(images),), float(quality)))
    pairs = zip(got, images, strict=True)
    return np.stack([np.abs(levels(m) - through_pil(x, quality)) for m, x in pairs])


@pytest.mark.parametrize("size", [(256, 256), (255, 241), (250, 242), (225, 239)])
@pytest.mark.parametrize("quality", [30, 42, 50, 75, 95])
def test_libjpeg_mode_follows_pillow(
    photographs: Tensor, size: tuple[int, int], quality: int
) -> None:
    difference = distance(photographs[..., : size[0], : size[1]], quality)
    assert (difference == 0).mean() >= 0.9995
    assert (difference <= 1).mean() >= 0.9998
    # The last row and column depend on how whole blocks are filled up.
    border = np.concatenate([difference[:, -1].ravel(), difference[:, :, -1].ravel()])
    assert border.mean() <= 1e-3


@pytest.mark.parametrize("size", [(240, 33), (17, 16), (15, 250), (2, 2), (1, 1), (18, 36)])
@pytest.mark.parametrize("quality", [30, 75, 95])
def test_libjpeg_mode_follows_pillow_on_small_images(
    photographs: Tensor, size: tuple[int, int], quality: int
) -> None:
    difference = distance(photographs[..., : size[0], : size[1]], quality)
    assert (difference == 0).mean() >= 0.999


@pytest.mark.parametrize("quality", [1, 10, 60, 99, 100])
def test_libjpeg_mode_follows_pillow_beyond_photographs(photographs: Tensor, quality: int) -> None:
    """At both ends of the quality, with every coefficient in use and colours out of range."""
    noise = torch.rand(2, 3, 80, 96, generator=torch.Generator().manual_seed(0))
    corners = (noise > 0.5).float()
    for images in (photographs, noise, corners):
        assert (distance(images, quality) == 0).mean() >= 0.9995


def test_libjpeg_mode_gives_levels(photographs: Tensor) -> None:
    got = jpeg(photographs, torch.tensor([1.0, 30.4, 95.0, 100.0])) * 255
    assert torch.equal(got, got.round())
    assert got.min() >= 0
    assert got.max() <= 255


def test_libjpeg_mode_rounds_the_quality(photographs: Tensor) -> None:
    pair = photographs[:1].expand(2, -1, -1, -1)
    got = jpeg(pair, torch.tensor([61.7, 62.0]))
    assert torch.equal(got[0], got[1])


_STANDARD_LUMA = """
16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112
100 103 99"""


def described_codec(image: np.ndarray, quality: float) -> np.ndarray:
    """The training codec of published networks, block by block in float64."""
    luma = np.array(_STANDARD_LUMA.split(), dtype=float).reshape(8, 8)
    chroma = np.full((8, 8), 99.0)
    chroma[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
    factor = 5000 / quality / 100 if quality < 50 else (200 - 2 * quality) / 100
    height, width = image.shape[:2]
    x = np.zeros((-(-height // 16) * 16, -(-width // 16) * 16, 3))  # black padding
    x[:height, :width] = image * 255
    forward = np.array(
        [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
    )
    ycc = x @ forward.T + [0, 128, 128]

    def coded(plane: np.ndarray, table: np.ndarray) -> np.ndarray:
        out = np.empty_like(plane)
        k = np.arange(8)
        basis = np.cos((2 * k[None, :] + 1) * k[:, None] * np.pi / 16)
        alpha = np.where(k == 0, 1 / np.sqrt(2), 1.0)
        for top in range(0, plane.shape[0], 8):
            for left in range(0, plane.shape[1], 8):
                block = plane[top : top + 8, left : left + 8] - 128
                coefficient = 0.25 * np.outer(alpha, alpha) * (basis @ block @ basis.T)
                quantised = np.round(coefficient / (table * factor)) * table * factor
                restored = 0.25 * basis.T @ (np.outer(alpha, alpha) * quantised) @ basis
                out[top : top + 8, left : left + 8] = restored + 128
        return out

    y = coded(ycc[..., 0], luma.T)  # the published code reads the standard table transposed
    halves = []
    for c in (1, 2):
        plane = ycc[..., c]
        half = (plane[::2, ::2] + plane[1::2, ::2] + plane[::2, 1::2] + plane[1::2, 1::2]) / 4
        halves.append(np.kron(coded(half, chroma), np.ones((2, 2))) - 128)
    cb, cr = halves
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1)
    return np.clip(rgb, 0, 255)[:height, :width] / 255


@pytest.mark.parametrize("quality", [1.0, 30.0, 49.9, 50.0, 66.6, 94.3])
@pytest.mark.parametrize("size", [(64, 96), (61, 50)])
def test_basicsr_mode_follows_its_description(
    photographs: Tensor, quality: float, size: tuple[int, int]
) -> None:
    # Values off the grid of levels, as inside the pipeline: nothing is rounded on the way.
    images = (photographs[:2, :, 40 : 40 + size[0], 60 : 60 + size[1]] * 0.97 + 0.011).contiguous()
    got = jpeg(images, torch.full((2,), quality), "basicsr")
    for mine, image in zip(got, images, strict=True):
        expected = described_codec(image.permute(1, 2, 0).double().numpy(), quality)
        difference = np.abs(mine.permute(1, 2, 0).numpy() - expected) * 255
        # A coefficient at a tie of the quantiser may fall on either side.
        assert np.quantile(difference, 0.99) < 1e-2
        assert difference.mean() < 5e-3


def test_basicsr_mode_swaps_the_directions_of_luma() -> None:
    """A wave along the width meets the step of the wave along the height, and the reverse."""
    k = 7  # the standard table has 61 for the width and 72 for the height
    wave = torch.cos((2 * torch.arange(16) + 1) * k * torch.pi / 16)
    amplitude = 33 / (2 * 8**0.5) / 255  # coefficient 33, between half of 61 and half of 72
    across = (0.5 + amplitude * wave.expand(1, 3, 16, 16)).contiguous()
    down = across.transpose(2, 3).contiguous()
    quality = torch.tensor([50.0])

    def survives(x: Tensor, mode: str) -> bool:
        return jpeg(x, quality, mode)[0, 0].std().item() > 0.005  # type: ignore[arg-type]

    assert survives(across, "libjpeg")
    assert not survives(down, "libjpeg")
    assert not survives(across, "basicsr")
    assert survives(down, "basicsr")


SIZES = [(61, 47), (64, 80), (1, 1), (17, 16), (80, 90), (3, 90), (79, 33), (80, 65)]
QUALITIES = torch.tensor([30.0, 95.0, 50.2, 75.0, 100.0, 1.0, 60.0, 90.0])


@pytest.fixture(scope="module")
def ragged(photographs: Tensor) -> Tensor:
    """Images of `SIZES` on one canvas that is full of rubbish."""
    canvas = 50 * torch.randn(8, 3, 80, 90, generator=torch.Generator().manual_seed(0))
    for i, (height, width) in enumerate(SIZES):
        canvas[i, :, :height, :width] = photographs[i % 4, :, 50 : 50 + height, 60 : 60 + width]
    return canvas


@pytest.mark.parametrize("mode", get_args(JpegMode))
def test_an_image_has_the_same_bits_alone_and_in_any_batch(ragged: Tensor, mode: JpegMode) -> None:
    together = jpeg(ragged, QUALITIES, mode, SIZES)
    for i, (height, width) in enumerate(SIZES):
        content = ragged[i : i + 1, :, :height, :width]
        alone = jpeg(content, QUALITIES[i : i + 1], mode)
        assert torch.equal(alone[0], together[i, :, :height, :width])
    whole = jpeg(ragged[4:5].expand(3, -1, -1, -1), torch.tensor([40.0, 100.0, 95.0]), mode)
    assert torch.equal(whole[1], together[4])


@pytest.mark.parametrize("mode", get_args(JpegMode))
def test_all_rows_at_once_give_what_each_gives_alone(ragged: Tensor, mode: JpegMode) -> None:
    """The way of accelerators, on the CPU."""
    together = all_rows_at_once(ragged, QUALITIES, mode, SIZES)
    assert 0 <= together.min() <= together.max() <= 1
    expected = jpeg(ragged, QUALITIES, mode, SIZES)
    for i, (height, width) in enumerate(SIZES):
        difference = (together - expected)[i, :, :height, :width].abs()
        # A coefficient at a tie of the quantiser may fall on either side.
        assert (difference > 1e-5).float().mean() < 0.01


@pytest.mark.parametrize("mode", get_args(JpegMode))
def test_accelerators_are_never_waited_for(ragged: Tensor, mode: JpegMode) -> None:
    """A tensor without data can be computed with, but not read."""
    assert jpeg(ragged.to("meta"), QUALITIES, mode, SIZES).shape == ragged.shape
    assert jpeg(ragged.to("meta"), QUALITIES.to("meta"), mode).shape == ragged.shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", get_args(JpegMode))
def test_a_gpu_agrees_and_is_not_waited_for(ragged: Tensor, mode: JpegMode) -> None:
    images = ragged.cuda()
    jpeg(images, QUALITIES, mode, SIZES)  # its constants
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cuda"):
            got = jpeg(images, QUALITIES, mode, SIZES)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
        torch.cuda.set_sync_debug_mode("default")
    expected = jpeg(ragged, QUALITIES, mode, SIZES)
    for i, (height, width) in enumerate(SIZES):
        difference = (got.cpu() - expected)[i, :, :height, :width].abs()
        assert (difference > 1e-5).float().mean() < 0.01


@pytest.mark.parametrize("mode", get_args(JpegMode))
def test_autocast_changes_nothing(ragged: Tensor, mode: JpegMode) -> None:
    expected = jpeg(ragged, QUALITIES, mode)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(jpeg(ragged, QUALITIES, mode), expected)


@pytest.mark.parametrize("mode", get_args(JpegMode))
def test_each_sample_has_its_own_quality(photographs: Tensor, mode: JpegMode) -> None:
    quality = torch.tensor([100.0, 31.0, 66.0, 1.0])
    before = quality.clone()
    together = jpeg(photographs, quality, mode)
    assert torch.equal(quality, before)
    for i in range(4):
        alone = jpeg(photographs[i : i + 1], quality[i : i + 1], mode)[0]
        assert torch.equal(alone, together[i])
    errors = [
        (jpeg(photographs[:1], torch.tensor([q]), mode) - photographs[:1]).abs().mean().item()
        for q in (1.0, 30.0, 60.0, 90.0, 100.0)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02
    assert np.isfinite(errors).all()


@pytest.mark.parametrize("mode", ["libjpeg", "basicsr"])
@pytest.mark.parametrize("level", [0, 100, 128, 255])
def test_a_flat_gray_image_stays_flat(mode: str, level: int) -> None:
    flat = torch.full((1, 3, 32, 48), level / 255)
    got = jpeg(flat, torch.tensor([75.0]), mode)  # type: ignore[arg-type]
    assert (got - got[..., :1, :1]).abs().max() < 1e-5
    assert (got - flat).abs().max() < 1.01 / 255


def test_bad_input_is_refused() -> None:
    x = torch.zeros(2, 3, 16, 16)
    q = torch.full((2,), 75.0)
    for bad in (torch.float16, torch.bfloat16, torch.float64, torch.uint8):
        with pytest.raises(TypeError, match="float32"):
            jpeg(x.to(bad), q)
    with pytest.raises(ValueError, match=r"\[3\]"):
        jpeg(x, torch.full((3,), 75.0))
    with pytest.raises(ValueError, match=r"\[2, 1, 16, 16\]"):
        jpeg(x[:, :1], q)
    with pytest.raises(ValueError, match="got 1 for 2 images"):
        jpeg(x, q, sizes=[(16, 16)])
    for size in ((17, 16), (16, 0)):
        with pytest.raises(ValueError, match=f"got {size[0]}x{size[1]}"):
            jpeg(x, q, sizes=[(16, 16), size])
    for bad_quality in (0.0, 101.0, float("nan")):
        with pytest.raises(ValueError, match="`quality`"):
            jpeg(x, torch.tensor([75.0, bad_quality]))
    with pytest.raises(ValueError, match="webp"):
        jpeg(x, q, "webp")  # type: ignore[arg-type]
