from __future__ import annotations

import cv2
import kornia
import numpy as np
import pytest
import torch
from torch import Tensor

from mtlweight_sr.degradation import (
    REALESRGAN_X4,
    DegradationParameters,
    blur,
    draw_cube,
    draw_seeds,
    parameters_from_cube,
    usm_sharpen,
)
from mtlweight_sr.degradation.blur import filter_lines, reflect_pad
from mtlweight_sr.degradation.kernels import Kernels, degradation_kernels
from tests.sr.degradation.simulated import simulated, to_device, to_host


def random_kernels(n: int, size: int) -> Tensor:
    # Neither symmetric nor positive: correlation and convolution differ.
    kernels = torch.randn(n, size, size, generator=torch.Generator().manual_seed(size))
    return kernels / kernels.abs().sum((1, 2), keepdim=True)


def filtered(image: Tensor, kernel: Tensor) -> Tensor:
    array = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    out = cv2.filter2D(array, -1, kernel.numpy(), borderType=cv2.BORDER_REFLECT_101)
    return torch.from_numpy(out).permute(2, 0, 1)


@pytest.mark.parametrize("size", [1, 7, 21])
@pytest.mark.parametrize("crop", [(256, 256), (64, 97)])
def test_blur_is_that_of_opencv_and_kornia(
    photographs: Tensor, size: int, crop: tuple[int, int]
) -> None:
    images = photographs[..., : crop[0], : crop[1]]
    kernels = random_kernels(4, size)
    got = blur(images, kernels)
    expected = torch.stack([filtered(x, k) for x, k in zip(images, kernels, strict=True)])
    assert (got - expected).abs().max() < 2e-6
    theirs = kornia.filters.filter2d(images, kernels, "reflect")
    assert (got - theirs).abs().max() < 2e-6


@pytest.mark.parametrize("crop", [(4, 4), (1, 5), (2, 30), (1, 1), (11, 11)])
def test_padding_wider_than_the_image(photographs: Tensor, crop: tuple[int, int]) -> None:
    images = photographs[..., : crop[0], : crop[1]]
    expected = np.pad(images.numpy(), ((0, 0), (0, 0), (10, 10), (10, 10)), mode="reflect")
    np.testing.assert_array_equal(reflect_pad(images, 10).numpy(), expected)
    assert blur(images, random_kernels(4, 21)).shape == images.shape


def test_a_flat_image_stays_flat() -> None:
    kernels = torch.rand(2, 9, 9)
    kernels /= kernels.sum((1, 2), keepdim=True)
    flat = torch.full((2, 3, 16, 24), 0.25)
    torch.testing.assert_close(blur(flat, kernels), flat)


@pytest.mark.parametrize("shape", [(1, 7, 7), (2, 6, 6), (2, 7, 5), (7, 7)])
def test_kernels_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="`kernels`"):
        blur(torch.zeros(2, 3, 16, 16), torch.zeros(shape))


def test_sharpening_is_that_of_dense_filters(photographs: Tensor) -> None:
    got = usm_sharpen(photographs)
    for image, mine in zip(photographs, got, strict=True):
        x = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        soft_x = cv2.GaussianBlur(x, (51, 51), 0)
        residual = x - soft_x
        mask = (np.abs(residual) * 255 > 10).astype(np.float32)
        soft = cv2.GaussianBlur(mask, (51, 51), 0)
        expected = soft * np.clip(x + 0.5 * residual, 0, 1) + (1 - soft) * x
        difference = np.abs(expected - mine.permute(1, 2, 0).numpy())
        # A residual at the threshold falls on either side by rounding.
        assert difference.max() < 2e-3
        assert difference.mean() < 2e-6
    assert (got - photographs).abs().mean() > 1e-3


def drawn(n: int, seed: int = 3) -> DegradationParameters:
    cube = draw_cube(range(n), seed)
    return parameters_from_cube(REALESRGAN_X4, cube, draw_seeds(range(n), seed))


def precisely(image: Tensor, taps: Tensor) -> Tensor:
    """OpenCV's filter in float64; it reflects at most once, hence the padding of our own."""
    pad = taps.shape[-1] // 2
    padded = reflect_pad(image[None].double(), pad)[0]
    return filtered(padded, taps.double())[:, pad:-pad, pad:-pad]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_every_kind_of_kernel_filters_as_its_taps(photographs: Tensor, stage: int) -> None:
    kernels = degradation_kernels(drawn(40))[stage]
    ways = {(k > 9, s, m) for k, s, m in zip(*known(kernels), strict=True)}
    assert len(ways) >= (2 if stage == 2 else 5)
    for i in range(40):
        height, width = 40 + 3 * i, 150 - 2 * i
        image = photographs[i % 4 : i % 4 + 1, :, :height, :width]
        got = blur(image, kernels[i])
        assert got.shape == image.shape
        # Rounding, and what lies outside the effective size.
        assert (got[0] - precisely(image[0], kernels.taps[i])).abs().max() < 1e-6


def known(kernels: Kernels) -> tuple[tuple[int, ...], tuple[bool, ...], tuple[bool, ...]]:
    return kernels.sizes, kernels.separable, kernels.mirrored


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 40), (17, 2), (12, 10)])
def test_images_smaller_than_their_kernels(photographs: Tensor, size: tuple[int, int]) -> None:
    kernels = degradation_kernels(drawn(24))[0]
    for i in range(24):
        image = photographs[:1, :, : size[0], : size[1]]
        assert (
            blur(image, kernels[i])[0] - precisely(image[0], kernels.taps[i])
        ).abs().max() < 1e-6


SIZES = [(64, 64), (20, 61), (64, 7), (33, 48), (1, 1), (50, 64)]


def ragged(photographs: Tensor, outside: float) -> Tensor:
    images = torch.full((6, 3, 64, 64), outside)
    for i, (height, width) in enumerate(SIZES):
        images[i, :, :height, :width] = photographs[i % 4, :, :height, :width]
    return images


def test_a_row_has_the_same_bits_in_a_batch_of_many_sizes(photographs: Tensor) -> None:
    images, kernels = ragged(photographs, float("nan")), degradation_kernels(drawn(6, 5))[1]
    assert 1 in kernels.sizes
    together = blur(images, kernels, SIZES)
    for i, (height, width) in enumerate(SIZES):
        alone = blur(images[i : i + 1, :, :height, :width], kernels[i])
        assert torch.equal(alone, together[i : i + 1, :, :height, :width])


@pytest.mark.parametrize("size", [(64, 64), (100, 36), (128, 128), (144, 144)])
def test_rows_have_the_same_bits_where_they_share_transforms(
    photographs: Tensor, size: tuple[int, int]
) -> None:
    kernels = degradation_kernels(drawn(12))[2]
    images = photographs[..., : size[0], : size[1]].repeat(3, 1, 1, 1)
    together = blur(images, kernels)
    for i in range(12):
        assert torch.equal(blur(images[i : i + 1], kernels[i])[0], together[i])
        expected = precisely(images[i], kernels.taps[i])
        assert (together[i] - expected).abs().max() < 2e-6


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_batch_on_an_accelerator_equals_its_rows(photographs: Tensor, stage: int) -> None:
    images, kernels = ragged(photographs, float("nan")), degradation_kernels(drawn(6, 5))[stage]
    with simulated():
        together = to_host(blur(to_device(images), kernels, SIZES))
        whole = to_host(blur(to_device(photographs), kernels[:4]))
    for i, (height, width) in enumerate(SIZES):
        alone = blur(images[i : i + 1, :, :height, :width], kernels[i])
        torch.testing.assert_close(
            together[i : i + 1, :, :height, :width], alone, atol=1e-6, rtol=0
        )
    torch.testing.assert_close(whole, blur(photographs, kernels[:4]), atol=1e-6, rtol=0)


def test_a_pulse_leaves_an_image_alone(photographs: Tensor) -> None:
    rows = drawn(30)
    off = [i for i in range(30) if not rows.second.blur[i]]
    kernels = degradation_kernels(rows)[1]
    assert torch.equal(blur(photographs[:2], kernels[off[:2]]), photographs[:2])
    some = kernels[[off[0], rows.second.blur.tolist().index(True)]]
    assert torch.equal(blur(photographs[:2], some)[0], photographs[0])
    with simulated():
        accelerated = to_host(blur(to_device(photographs[:2]), some))
    assert torch.equal(accelerated[0], photographs[0])


def test_one_kernel_per_image() -> None:
    kernels = degradation_kernels(drawn(3))[0]
    with pytest.raises(ValueError, match="3 `kernels` for 2 images"):
        blur(torch.zeros(2, 3, 16, 16), kernels)


def test_images_may_lie_in_memory_in_any_order(photographs: Tensor) -> None:
    kernels = degradation_kernels(drawn(12))[0]
    for i in range(12):
        image = photographs[:1, :, :60, :50]
        last = image.contiguous(memory_format=torch.channels_last)
        assert torch.equal(blur(image.contiguous(), kernels[i]), blur(last, kernels[i]))


@pytest.mark.parametrize(("vertical", "horizontal"), [(51, 51), (3, 11), (1, 7)])
def test_lines_filter_as_their_product(photographs: Tensor, vertical: int, horizontal: int) -> None:
    a, b = random_kernels(1, vertical)[0, 0], random_kernels(1, horizontal)[0, :, 0]
    for images in (photographs[:2, :, :70, :90], photographs[:1, :, :9, :120]):
        expected = torch.stack([filtered_by_lines(image, a, b) for image in images])
        assert (filter_lines(images, a, b) - expected).abs().max() < 2e-6


def filtered_by_lines(image: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    pad = 25
    array = np.pad(image.numpy(), ((0, 0), (pad, pad), (pad, pad)), mode="reflect")
    array = np.ascontiguousarray(array.transpose(1, 2, 0))
    out = cv2.sepFilter2D(array, -1, horizontal.numpy(), vertical.numpy())
    return torch.from_numpy(out[pad:-pad, pad:-pad]).permute(2, 0, 1)
