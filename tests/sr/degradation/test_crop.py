from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor

from mtlweight_sr.degradation import crop_pair


def numbered(batch: int, height: int, width: int) -> Tensor:
    """Images whose values tell where a pixel lies."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, rows * 0]).float().expand(batch, -1, -1, -1)


@pytest.mark.parametrize("scale", [2, 4])
def test_both_crops_show_the_same_place(scale: int) -> None:
    hr = numbered(50, 48, 96)
    whole, small = crop_pair(hr, hr[..., ::scale, ::scale], 40, range(50), scale)
    assert whole.shape == (50, 3, 40, 40)
    assert small.shape == (50, 3, 40 // scale, 40 // scale)
    assert torch.equal(whole[..., ::scale, ::scale], small)
    assert whole[:, 0, 0, 0].unique().numel() == 8 // scale + 1


def test_every_place_is_equally_likely() -> None:
    hr = numbered(1, 16, 24).expand(6000, -1, -1, -1)
    _, small = crop_pair(hr, hr[..., ::4, ::4], 8, range(6000), 4)
    at = small[:, 0, 0, 0] / 4 * 5 + small[:, 1, 0, 0] / 4
    assert stats.chisquare(torch.bincount(at.long(), minlength=15)).pvalue > 0.01


def test_a_place_follows_its_key_alone() -> None:
    hr = numbered(8, 64, 64)
    lr = hr[..., ::4, ::4]
    keys = [5, 6, 5 + 2**40, 2**62, 0, 1, 2, 3]
    whole, _ = crop_pair(hr, lr, 16, keys, 4)
    backwards, _ = crop_pair(hr, lr, 16, torch.tensor(keys[::-1]), 4)
    assert torch.equal(backwards.flip(0), whole)
    assert not torch.equal(whole[0], whole[2])


def test_images_of_different_sizes() -> None:
    hr = [numbered(1, 32 + 4 * i, 64 - 4 * i)[0] for i in range(5)]
    whole, small = crop_pair(hr, [image[:, ::4, ::4] for image in hr], 32, range(5), 4)
    assert torch.equal(whole[..., ::4, ::4], small)


def test_nothing_is_read_from_a_device() -> None:
    """On the meta device tensors have no values: whoever reads one fails."""
    hr = torch.zeros(3, 3, 64, 64, device="meta")
    whole, small = crop_pair(hr, hr[..., ::4, ::4], 32, range(3), 4)
    assert whole.is_meta
    assert small.shape == (3, 3, 8, 8)


def test_the_images_are_left_alone() -> None:
    hr = numbered(2, 8, 8).clone()
    whole, _ = crop_pair(hr, hr[..., ::4, ::4], 8, range(2), 4)
    whole.fill_(-1)
    assert torch.equal(hr, numbered(2, 8, 8))


@pytest.mark.parametrize(
    ("hr", "lr", "size", "keys", "words"),
    [
        ((2, 3, 8, 8), (2, 3, 2, 2), 8, 3, "2, 2 and 3"),
        ((2, 3, 8, 8), (1, 3, 2, 2), 8, 2, "2, 1 and 2"),
        ((0, 3, 8, 8), (0, 3, 2, 2), 8, 0, "at least one"),
        ((2, 3, 8, 8), (2, 3, 2, 2), 6, 2, "`size`.*got 6; write 4"),
        ((2, 3, 8, 8), (2, 3, 2, 2), 0, 2, "`size`.*got 0"),
        ((2, 3, 8, 8), (2, 3, 2, 2), 12, 2, "at least 12x12, got 8x8"),
        ((2, 3, 8, 8), (2, 3, 4, 4), 8, 2, "4 times .* got 8x8 and 4x4"),
    ],
)
def test_what_does_not_fit_is_refused(
    hr: tuple[int, ...], lr: tuple[int, ...], size: int, keys: int, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        crop_pair(torch.zeros(hr), torch.zeros(lr), size, range(keys), 4)
