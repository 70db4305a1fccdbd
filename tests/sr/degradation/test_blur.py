from __future__ import annotations

import cv2
import kornia
import numpy as np
import pytest
import torch
from torch import Tensor

from mtlweight_sr.degradation import blur, usm_sharpen
from mtlweight_sr.degradation.blur import reflect_pad


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
