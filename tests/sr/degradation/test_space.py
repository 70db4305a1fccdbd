from __future__ import annotations

import math
from fractions import Fraction

import pytest
from pydantic import ValidationError

from mtlweight_sr.degradation import (
    REALESRGAN_X2,
    REALESRGAN_X4,
    BlurSettings,
    DegradationSpace,
    JpegSettings,
    NoiseSettings,
    ResizeSettings,
    Stage,
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


@pytest.mark.parametrize("space", [REALESRGAN_X4, REALESRGAN_X2])
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
