from __future__ import annotations

import math
from fractions import Fraction

import pytest
from pydantic import ValidationError

from mtlweight_sr.degradation import (
    DASR_SEVERE,
    DASR_SHARES,
    DASR_STANDARD,
    DASR_WEAK,
    REALESRGAN_X2,
    REALESRGAN_X4,
    STABLESR_X4,
    BlurSettings,
    DegradationSpace,
    JpegSettings,
    NoiseSettings,
    ResizeSettings,
    Stage,
    draw_cube,
    draw_seeds,
    parameters_from_cube,
)
from mtlweight_sr.degradation.columns import atom_edges, branches
from mtlweight_sr.degradation.space import exact


def test_realesrgan_holds_the_published_numbers() -> None:
    first, second, final = (getattr(REALESRGAN_X4, n) for n in ("first", "second", "final"))
    assert first.blur.kernel_sizes == second.blur.kernel_sizes == (7, 9, 11, 13, 15, 17, 19, 21)
    assert (first.blur.on, second.blur.on) == (1.0, 0.8)
    assert (first.blur.sigma_x, second.blur.sigma_y) == ((0.2, 3.0), (0.2, 1.5))
    assert (first.resize.up, first.resize.down, first.resize.keep) == (0.2, 0.7, 0.1)
    assert (second.resize.up, second.resize.down, second.resize.keep) == (0.3, 0.4, 0.3)
    assert (first.resize.down_range, second.resize.down_range) == ((0.15, 1), (0.3, 1))
    assert (first.noise.sigma, second.noise.sigma) == ((1, 30), (1, 25))
    assert (first.noise.scale, second.noise.scale) == ((0.05, 3), (0.05, 2.5))
    assert first.jpeg.quality == second.jpeg.quality == (30, 95)
    assert (final.sinc, final.before_jpeg) == (0.8, 0.5)
    assert final.cutoff == (math.pi / 3, math.pi)


def test_x2_differs_by_scale_alone() -> None:
    assert REALESRGAN_X2.model_copy(update={"scale": 4}) == REALESRGAN_X4


DASR = {"weak": DASR_WEAK, "standard": DASR_STANDARD, "severe": DASR_SEVERE}


@pytest.mark.parametrize(
    ("name", "sigma", "factors", "noise", "scale", "quality"),
    [
        ("weak", (0.2, 0.8), (0.85, 1.2), (1, 10), (0.05, 0.5), (90, 95)),
        ("standard", (0.2, 1.5), (0.5, 1.2), (1, 20), (0.05, 1.5), (50, 95)),
        ("severe", (0.2, 3.0), (0.15, 1.5), (1, 30), (0.05, 3.0), (30, 95)),
    ],
)
def test_dasr_holds_the_published_numbers(
    name: str, sigma: tuple, factors: tuple, noise: tuple, scale: tuple, quality: tuple
) -> None:
    first = DASR[name].first
    assert first.blur.families == (0.65, 0.35, 0, 0, 0, 0)
    assert first.blur.sinc == 0
    assert first.blur.sigma_x == first.blur.sigma_y == sigma
    assert (first.resize.down_range[0], first.resize.up_range[1]) == factors
    assert first.resize.down_range[1] == first.resize.up_range[0] == 1
    assert (first.noise.sigma, first.noise.scale, first.noise.gray) == (noise, scale, 0.4)
    assert first.jpeg.quality == quality


def test_dasr_shares() -> None:
    assert DASR_SHARES == (0.3, 0.3, 0.4)
    directions = [(s.first.resize.up, s.first.resize.down) for s in DASR.values()]
    assert directions == [(0.1, 0.2), (0.3, 0.4), (0.2, 0.7)]
    severe = DASR_SEVERE
    assert (severe.second.blur.on, severe.second.blur.sinc, severe.final.sinc) == (0.8, 0, 0.8)
    assert severe.second.noise == REALESRGAN_X4.second.noise


def test_one_stage_is_followed_by_the_resize_alone() -> None:
    cube, seeds = draw_cube(range(200), 0), draw_seeds(range(200), 0)
    for space in (DASR_WEAK, DASR_STANDARD):
        p = parameters_from_cube(space, cube, seeds)
        assert p.first.blur.all()
        assert p.first.jpeg.all()
        for off in (p.second.blur, p.second.jpeg, p.final.sinc):
            assert not off.any()
        assert (p.second.resize_scale == 1).all()
        assert (p.second.noise_strength == 0).all()
        words = p.describe(0)
        assert words.count("JPEG") == words.count("blur") == words.count("noise") == 1


def test_stablesr_holds_the_published_numbers() -> None:
    first, second = STABLESR_X4.first, STABLESR_X4.second
    assert first.resize.down_range + first.resize.up_range == (0.3, 1, 1, 1.5)
    assert second.resize.down_range + second.resize.up_range == (0.6, 1, 1, 1.2)
    assert (first.noise.sigma, first.noise.scale) == ((1, 15), (0.05, 2))
    assert (second.noise.sigma, second.noise.scale) == ((1, 12), (0.05, 1))
    assert (first.jpeg.quality, second.jpeg.quality) == ((60, 95), (60, 100))
    assert (first.blur.sigma_x, second.blur.sigma_y) == ((0.2, 1.5), (0.2, 1))
    assert (first.blur.on, second.blur.on) == (1, 0.5)
    assert STABLESR_X4.final == REALESRGAN_X4.final


SPACES = [REALESRGAN_X4, REALESRGAN_X2, DASR_WEAK, DASR_STANDARD, DASR_SEVERE, STABLESR_X4]


@pytest.mark.parametrize("space", SPACES)
def test_json_round_trip(space: DegradationSpace) -> None:
    assert DegradationSpace.model_validate_json(space.model_dump_json()) == space


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (BlurSettings, {"on": 1.2}, "on"),
        (BlurSettings, {"families": (0.5, 0.5, 0.5, 0, 0, 0)}, "sum to 1"),
        (BlurSettings, {"families": (1.5, -0.5, 0, 0, 0, 0)}, "families"),
        (BlurSettings, {"sigma_x": (3.0, 0.2)}, "low <= high"),
        (BlurSettings, {"sigma_x": (0.0, 1.0)}, "sigma_x"),
        (BlurSettings, {"rotation": (math.nan, 1.0)}, "rotation"),
        (BlurSettings, {"kernel_sizes": (7, 8)}, "odd"),
        (BlurSettings, {"kernel_sizes": (21, 23)}, "21"),
        (BlurSettings, {"kernel_sizes": (9, 7)}, "increasing"),
        (BlurSettings, {"kernel_sizes": ()}, "odd"),
        (BlurSettings, {"cutoff_small": (1.0, 4.0)}, "cutoff_small"),
        (ResizeSettings, {"up": 0.5}, "sum to 1"),
        (ResizeSettings, {"modes": (1, 1, 1)}, "sum to 1"),
        (ResizeSettings, {"down_range": (0, 1)}, "down_range"),
        (NoiseSettings, {"sigma": (-1, 2)}, "sigma"),
        (JpegSettings, {"quality": (0, 95)}, "quality"),
        (JpegSettings, {"quality": (30, 101)}, "quality"),
        (JpegSettings, {"qualty": (30, 95)}, "qualty"),
        (DegradationSpace, {"scale": 3, "second": Stage()}, "scale"),
    ],
)
def test_bad_numbers_are_refused_by_name(model: type, options: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        model(**options)


def test_a_space_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        REALESRGAN_X4.first.jpeg.on = 0.5


def test_decimals_are_read_as_written() -> None:
    assert exact(0.45) == Fraction(9, 20)
    assert exact(Fraction(1, 3)) == Fraction(1, 3)


def test_every_parameter_is_covered_once() -> None:
    """The branches of a parameter that always exists are disjoint and fill the cube."""
    sometimes = {f"noise_{kind}_{s}": Fraction(1, 2) for kind in ("sigma", "scale") for s in (1, 2)}
    for name, pieces in branches(REALESRGAN_X4).items():
        volume = sum(
            math.prod((high - low for low, high in p.where.values()), start=Fraction(1))
            for p in pieces
        )
        assert volume == sometimes.get(name, 1), name


def test_discrete_columns_know_their_edges() -> None:
    edges = atom_edges(REALESRGAN_X4)
    assert edges["kernel_size_1"] == {Fraction(i, 8) for i in range(9)}
    assert edges["family_2"] == {0, *map(exact, (0.45, 0.7, 0.82, 0.85, 0.97)), 1}
    assert edges["resize_mode_1"] == {Fraction(i, 3) for i in range(4)}
    assert edges["noise_type_1"] == {0, Fraction(1, 2), 1}
    assert "noise_level_1" not in edges
    assert "jpeg_quality_1" not in edges
