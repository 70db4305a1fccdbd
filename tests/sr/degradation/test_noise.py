from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from mtlweight_sr.degradation import gaussian_noise, poisson_noise
from mtlweight_sr.degradation.noise import add_noise, normal_fields
from tests.sr.degradation.simulated import simulated, to_device, to_host


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


# --- from standard normal fields ------------------------------------------------------------------

GAUSSIAN, POISSON, NONE = 0, 1, 2


def noisy(
    images: Tensor,
    kinds: list[int],
    strength: list[float],
    gray: list[bool],
    normals: Tensor,
    sizes: list[tuple[int, int]] | None = None,
    **options: object,
) -> Tensor:
    columns = torch.tensor(kinds), torch.tensor(strength), torch.tensor(gray)
    return add_noise(images, *columns, normals, sizes, **options)  # type: ignore[arg-type]


def quantiles(height: int, width: int) -> Tensor:
    """The normal distribution itself instead of draws from it, `[1, 3, H, W]`."""
    n = 3 * height * width
    return (
        torch.special.ndtri((torch.arange(n).double() + 0.5) / n).float().view(1, 3, height, width)
    )


def counts_of(level: int, z: Tensor, strength: float = 0.1) -> Tensor:
    image = torch.full_like(z, level / 255)
    out = noisy(image, [POISSON], [strength], [False], z, levels=256)
    counts = ((out - image).double() / strength + level / 255) * 256
    assert (counts - counts.round()).abs().max() < 2e-2
    return counts.round()


@pytest.mark.parametrize("level", range(8))
def test_small_means_have_exact_counts(level: int) -> None:
    z = torch.cat([quantiles(100, 100), torch.linspace(-7, 7, 30000).view(1, 3, 100, 100)])
    z = z.view(1, 3, 100, 200)
    expected = stats.poisson.isf(stats.norm.sf(z.double().numpy()), level * 256 / 255)
    got = counts_of(level, z)
    wrong = got.numpy() != expected
    assert wrong.mean() < 1e-4  # z in float32, at a step
    assert np.abs(got.numpy() - expected).max() <= 1


@pytest.mark.parametrize(
    ("level", "third"),
    [(1, 2e-3), (3, 2e-3), (7, 2e-3), (8, 0.015), (16, 0.01), (64, 5e-3), (200, 2e-3)],
)
def test_counts_have_the_moments_of_a_poisson_variable(level: int, third: float) -> None:
    """Over the normal distribution itself: no draws, no chance."""
    mean = level * 256 / 255
    central = counts_of(level, quantiles(600, 600)) - mean
    assert abs(central.mean().item()) < 1e-3
    assert central.square().mean().item() == pytest.approx(mean, rel=1e-3)
    assert central.pow(3).mean().item() == pytest.approx(mean, rel=third + 2e-3)


@pytest.mark.parametrize(
    ("level", "most"), [(2, 2e-4), (7, 2e-4), (8, 3e-3), (30, 1.5e-3), (200, 5e-4)]
)
def test_counts_have_the_distribution_of_a_poisson_variable(level: int, most: float) -> None:
    counts = counts_of(level, quantiles(300, 300)).long().flatten()
    shares = torch.bincount(counts).double() / len(counts)
    expected = torch.from_numpy(stats.poisson.pmf(np.arange(len(shares)), level * 256 / 255))
    assert (shares - expected).abs().sum() / 2 < most


def test_counts_grow_with_the_field() -> None:
    z = torch.linspace(-7.9, 7.9, 3 * 64 * 64).view(1, 3, 64, 64)
    for level in (0, 1, 5, 8, 9, 40):
        assert (counts_of(level, z).flatten().diff() >= 0).all()


def test_gaussian_noise_is_the_field_times_sigma(photographs: Tensor) -> None:
    z = torch.randn(4, 3, 256, 256, generator=generator())
    out = noisy(photographs, [GAUSSIAN] * 4, [5.0, 10.0, 20.0, 1.0], [False, True, False, True], z)
    for i, (sigma, gray) in enumerate([(5, False), (10, True), (20, False), (1, True)]):
        field = z[i, :1] if gray else z[i]
        expected = (photographs[i] + field * sigma / 255).clamp(0, 1)
        torch.testing.assert_close(out[i], expected, atol=1e-6, rtol=0)


def test_no_noise_only_cuts_off() -> None:
    images = torch.linspace(-1, 2, 3 * 8 * 8).view(1, 3, 8, 8)
    assert torch.equal(noisy(images, [NONE], [9.0], [True], images), images.clamp(0, 1))


def test_poisson_rows_match_the_field_that_is_added(photographs: Tensor) -> None:
    for gray in (False, True):
        flags = torch.full((4,), gray)
        field = poisson_noise(photographs, torch.full((4,), 0.7), flags, generator=generator(5))
        z = torch.randn(4, 3, 256, 256, generator=generator(5))
        out = noisy(photographs, [POISSON] * 4, [0.7] * 4, [gray] * 4, z)
        torch.testing.assert_close(out, (photographs + field).clamp(0, 1), atol=1e-6, rtol=0)


SIZES = [(64, 64), (20, 61), (64, 7), (33, 48), (1, 1), (50, 64), (40, 40)]
KINDS = [POISSON, GAUSSIAN, POISSON, NONE, POISSON, GAUSSIAN, POISSON]
STRENGTH = [1.0, 20.0, 2.0, 0.0, 0.5, 3.0, 2.5]
GRAYS = [False, True, True, False, False, False, True]


def ragged(photographs: Tensor) -> Tensor:
    images = torch.rand(7, 3, 64, 64, generator=generator(8))  # outside: more levels than inside
    for i, (height, width) in enumerate(SIZES):
        images[i, :, :height, :width] = photographs[i % 4, :, :height, :width]
    images[2, :, :64, :7] = (images[2, :, :64, :7] * 6).round() / 255  # few levels, small means
    return images


@pytest.mark.parametrize("levels", ["auto", 256])
def test_a_batch_of_many_sizes_equals_its_rows(photographs: Tensor, levels: object) -> None:
    images = ragged(photographs)
    z = torch.randn(7, 3, 64, 64, generator=generator(9))
    together = noisy(images, KINDS, STRENGTH, GRAYS, z, SIZES, levels=levels)
    with simulated():
        arguments = torch.tensor(KINDS), torch.tensor(STRENGTH), torch.tensor(GRAYS)
        accelerated = to_host(
            add_noise(to_device(images), *arguments, to_device(z), SIZES, levels=levels)  # type: ignore[arg-type]
        )
    for i, (height, width) in enumerate(SIZES):
        row = slice(i, i + 1), slice(None), slice(height), slice(width)
        alone = noisy(
            images[row], *([c[i]] for c in (KINDS, STRENGTH, GRAYS)), z[row], levels=levels
        )
        assert torch.equal(together[row], alone)
        # Rounding moves a count where it falls on a half.
        near = (accelerated[row] - alone).abs() < 1e-5
        assert near.float().mean() > 0.999


def test_all_rows_of_a_batch_on_an_accelerator_may_be_gray(photographs: Tensor) -> None:
    z = torch.randn(4, 1, 256, 256, generator=generator(9))
    arguments = [POISSON, GAUSSIAN, POISSON, GAUSSIAN], [1.0, 9.0, 2.0, 3.0], [True] * 4
    alone = noisy(photographs, *arguments, z)
    with simulated():
        columns = (torch.tensor(column) for column in arguments)
        together = to_host(add_noise(to_device(photographs), *columns, to_device(z)))
    assert ((together - alone).abs() < 1e-5).float().mean() > 0.999
    assert torch.equal(alone[0], noisy(photographs[:1], [POISSON], [1.0], [True], z[:1])[0])


def test_one_channel_is_not_enough_for_colour() -> None:
    with pytest.raises(ValueError, match="3 channels"):
        noisy(torch.zeros(1, 3, 8, 8), [GAUSSIAN], [1.0], [False], torch.zeros(1, 1, 8, 8))


def test_fields_belong_to_their_key_stage_and_size() -> None:
    keys, gray = [11, 2**62 + 5, 11, 2**32 + 11], [False, True, False, False]
    sizes = [(30, 40), (40, 30), (30, 40), (40, 40)]
    fields = normal_fields(keys, 1, (40, 40), sizes, gray=gray)
    assert fields.shape == (4, 3, 40, 40)
    assert torch.equal(fields[0], fields[2])
    for i, (height, width) in enumerate(sizes):
        alone = normal_fields([keys[i]], 1, (height, width), gray=[gray[i]])
        assert alone.shape == (1, 1 if gray[i] else 3, height, width)
        assert torch.equal(alone[0], fields[i, : alone.shape[1], :height, :width])
    first = normal_fields([11], 1, (40, 40), gray=[False])
    for other in (
        normal_fields([11], 2, (40, 40), gray=[False]),
        normal_fields([12], 1, (40, 40), gray=[False]),
        fields[3:],
    ):
        assert correlation(first, other) < 0.05
    assert normal_fields([1, 2], 1, (8, 8), gray=[True, True]).shape == (2, 1, 8, 8)


def test_fields_on_an_accelerator_are_pure() -> None:
    def drawn(keys: list[int], stage: int) -> Tensor:
        with simulated():
            gray = [False] * len(keys)
            return to_host(normal_fields(keys, stage, (64, 64), gray=gray, device="maia:0"))

    one = drawn([3, 4], 1)
    assert torch.equal(one, drawn([3, 4], 1))
    for other in (drawn([3, 4], 2), drawn([4, 3], 1), one.flip(0)):
        assert correlation(one, other) < 0.05
    assert one.std().item() == pytest.approx(1, rel=0.02)
