from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mtlweight_sr.degradation import gaussian_noise, poisson_noise


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


COLOUR, GRAY = torch.tensor([False, False]), torch.tensor([True, True])


def test_gaussian_noise_has_its_sigma_and_shape() -> None:
    sigma = torch.tensor([2.0, 30.0])
    noise = gaussian_noise(torch.zeros(2, 3, 300, 300), sigma, COLOUR, generator=generator())
    scaled = noise.flatten(1) / (sigma[:, None] / 255)
    n = scaled.shape[1]
    assert (scaled.mean(1).abs() < 5 / math.sqrt(n)).all()
    assert ((scaled.square().mean(1) - 1).abs() < 5 * math.sqrt(2 / n)).all()
    assert (scaled.pow(3).mean(1).abs() < 5 * math.sqrt(15 / n)).all()
    assert ((scaled.pow(4).mean(1) - 3).abs() < 5 * math.sqrt(96 / n)).all()


def correlation(a: Tensor, b: Tensor) -> float:
    return abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]))


@pytest.mark.parametrize("kind", ["gaussian", "poisson"])
def test_gray_noise_is_shared_by_channels_and_by_no_two_samples(kind: str) -> None:
    images = torch.full((2, 3, 128, 128), 0.5)
    images[..., 0] = torch.linspace(0, 1, 128)  # enough levels
    noise = gaussian_noise if kind == "gaussian" else poisson_noise
    field = noise(images, torch.tensor([1.0, 2.0]), GRAY, generator=generator())
    for channel in (1, 2):
        assert torch.equal(field[:, 0], field[:, channel])
    assert correlation(field[0, 0, :, 1:], field[1, 0, :, 1:]) < 0.05
    colour = noise(images, torch.tensor([1.0, 2.0]), COLOUR, generator=generator())
    assert correlation(colour[0, 0, :, 1:], colour[0, 1, :, 1:]) < 0.05
    assert correlation(colour[0, :, :, 1:], colour[1, :, :, 1:]) < 0.05


def test_each_sample_has_its_own_kind() -> None:
    field = gaussian_noise(
        torch.zeros(2, 3, 32, 32), torch.ones(2), torch.tensor([True, False]), generator=generator()
    )
    assert torch.equal(field[0, 0], field[0, 1])
    assert not torch.equal(field[1, 0], field[1, 1])


@pytest.mark.parametrize("level", [2, 16, 64, 128, 250])
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_poisson_noise_has_three_moments(level: int, scale: float) -> None:
    value = level / 255
    image = torch.full((1, 3, 400, 400), value)
    noise = poisson_noise(
        image, torch.tensor([scale]), COLOUR[:1], levels=256, generator=generator(level)
    )
    count = (noise / scale + value) * 256  # what was drawn: Poisson with this mean
    rate = value * 256
    n = count.numel()
    assert abs(count.mean().item() - rate) < 5 * math.sqrt(rate / n)
    central = count.double() - rate
    assert abs(central.square().mean().item() - rate) < 5 * math.sqrt((rate + 2 * rate**2) / n)
    # Third central moment of a Poisson variable is its mean; the bound uses its sixth.
    sixth = rate + 25 * rate**2 + 15 * rate**3
    assert abs(central.pow(3).mean().item() - rate) < 5 * math.sqrt(sixth / n)
    whole = count.round()
    assert (count - whole).abs().max() < 2e-2
    assert whole.min() >= 0


@pytest.mark.parametrize(
    ("levels", "grains"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (129, 256), (256, 256)]
)
def test_grains_are_the_next_power_of_two(levels: int, grains: int) -> None:
    """The number of grains is read off the smallest step of the noise."""
    flat = (torch.arange(3 * 128 * 128) % levels).float()
    image = (flat / 255).view(1, 3, 128, 128)
    if levels == 1:
        image = image + 1.0
    noise = poisson_noise(image, torch.ones(1), COLOUR[:1], generator=generator())
    count = (noise + (image * 255).round() / 255) * grains
    assert (count - count.round()).abs().max() < 1e-2
    odd = count.round() % 2 == 1
    assert odd.any()  # half as many grains would make every count even


def test_flat_images_get_strong_noise_unless_told_otherwise() -> None:
    flat = torch.full((1, 3, 100, 100), 0.5)
    auto = poisson_noise(flat, torch.ones(1), COLOUR[:1], generator=generator())
    fixed = poisson_noise(flat, torch.ones(1), COLOUR[:1], levels=256, generator=generator())
    assert auto.std().item() == pytest.approx(math.sqrt(128 / 255), rel=0.05)
    assert fixed.std().item() == pytest.approx(math.sqrt(128 / 255 / 256), rel=0.05)


def test_gray_poisson_noise_is_that_of_the_luma() -> None:
    image = torch.zeros(1, 3, 200, 200)
    image[:, 1] = 1.0  # luma 0.587
    noise = poisson_noise(image, torch.ones(1), GRAY[:1], levels=256, generator=generator())
    assert noise[:, 0].var().item() == pytest.approx(0.587 / 256, rel=0.05)
    assert abs(noise.mean().item()) < 5 * math.sqrt(0.587 / 256 / 200**2)


def test_values_outside_the_range_count_as_its_ends() -> None:
    wild = torch.tensor([-0.3, 0.5, 1.4]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    noise = poisson_noise(wild, torch.ones(1), COLOUR[:1], levels=256, generator=generator())
    assert (noise[:, 0] == 0).all()
    assert noise[:, 2].var().item() == pytest.approx(1 / 256, rel=0.1)


def test_the_two_types_are_equally_strong_at_one_level() -> None:
    grey = torch.full((1, 3, 200, 200), 0.5)
    for level in (0.1, 0.5, 1.0):
        sigma, scale = torch.tensor([1 + 29 * level]), torch.tensor([0.05 + 2.95 * level])
        a = gaussian_noise(grey, sigma, COLOUR[:1], generator=generator()).std()
        b = poisson_noise(grey, scale, COLOUR[:1], levels=256, generator=generator()).std()
        assert 0.8 < (b / a).item() < 1.25


def test_unknown_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="128"):
        poisson_noise(torch.zeros(1, 3, 8, 8), torch.ones(1), COLOUR[:1], levels=128)  # type: ignore[arg-type]
