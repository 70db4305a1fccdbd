from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mtlweight_sr.degradation import (
    COLUMNS,
    REALESRGAN_X2,
    REALESRGAN_X4,
    DegradationParameters,
    DegradationSpace,
    draw_cube,
    draw_parameters,
    draw_seeds,
    parameters_from_cube,
)
from mtlweight_sr.degradation.philox import philox


def drawn(n: int, space: DegradationSpace = REALESRGAN_X4, seed: int = 0) -> DegradationParameters:
    return parameters_from_cube(space, draw_cube(range(n), seed), draw_seeds(range(n), seed))


def changed(space: DegradationSpace, **stages: dict) -> DegradationSpace:
    document = space.model_dump()
    for stage, parts in stages.items():
        for part, options in parts.items():
            document[stage][part].update(options)
    return DegradationSpace.model_validate(document)


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]
) -> None:
    got = philox([np.array([word], dtype=np.uint64) for word in counter], key)
    assert tuple(int(word[0]) for word in got) == answer


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=12),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
)
def test_any_row_can_be_made_alone(ids: list[int], seed: int, stream: int) -> None:
    together = draw_cube(ids, seed, stream)
    assert together.shape == (len(ids), 38)
    assert together.dtype == torch.float64
    assert ((together >= 0) & (together < 1)).all()
    alone = torch.cat([draw_cube([i], seed, stream) for i in ids])
    assert torch.equal(together, alone)
    assert torch.equal(together, draw_cube(torch.tensor(ids), seed, stream))


def test_rows_are_uniform_and_unrelated() -> None:
    cube = draw_cube(range(20_000), 3).numpy()
    assert min(stats.kstest(column, "uniform").pvalue for column in cube.T) > 1e-4
    between_columns = np.corrcoef(cube.T) - np.eye(38)
    assert np.abs(between_columns).max() < 0.035
    for other in (draw_cube(range(20_000), 4), draw_cube(range(20_000), 3, 1)):
        both = np.corrcoef(cube.T, other.numpy().T)
        assert np.abs(np.diag(both[:38, 38:])).max() < 0.035
    neighbours = [abs(np.corrcoef(c[1:], c[:-1])[0, 1]) for c in cube.T]
    assert max(neighbours) < 0.035


def test_noise_seeds_are_a_function_of_the_same_key() -> None:
    seeds = draw_seeds(range(10_000), 7)
    assert seeds.dtype == torch.int64
    assert (seeds >= 0).all()
    assert len(seeds.unique()) == 10_000
    assert torch.equal(seeds[[5, 2]], draw_seeds([5, 2], 7))
    assert not torch.equal(seeds, draw_seeds(range(10_000), 8))


def test_no_ids_no_rows() -> None:
    assert draw_cube([], 0).shape == (0, 38)
    assert len(drawn(0)) == 0


@pytest.mark.parametrize(
    ("ids", "seed", "stream", "error", "words"),
    [
        ([-1], 0, 0, ValueError, "`ids`.*-1"),
        ([0.5], 0, 0, TypeError, "whole numbers"),
        ([[0]], 0, 0, ValueError, r"\(1, 1\)"),
        ([0], -1, 0, ValueError, "`seed`.*-1"),
        ([0], 2**64, 0, ValueError, "`seed`"),
        ([0], 0.5, 0, TypeError, "`seed`"),
        ([0], 0, 2**32, ValueError, "`stream`"),
    ],
)
def test_bad_keys_are_refused(
    ids: list, seed: int, stream: int, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        draw_cube(ids, seed, stream)


def by_hand(v: np.ndarray) -> dict[str, float | int]:
    """Real-ESRGAN's maps written out one by one, for one row of the cube."""
    out: dict[str, float | int] = {}

    def blur(at: int, s: int, sigma: float) -> None:
        family = int(np.searchsorted([0.45, 0.70, 0.82, 0.85, 0.97], v[at + 2], side="right"))
        low_side = v[at + 6] < 0.5
        size = 7 + 2 * math.floor(8 * v[at])
        sigma_x = 0.2 + sigma * v[at + 3]
        anisotropic = family in (1, 3, 5)
        if family in (2, 3):
            beta = 0.5 + 0.5 * v[at + 7] if low_side else 1 + 3 * v[at + 7]
        elif family in (4, 5):
            beta = 1 if low_side else 1 + v[at + 7]
        else:
            beta = 1
        out[f"kernel_size{s}"] = size
        out[f"sinc{s}"] = v[at + 1] < 0.1
        out[f"family{s}"] = family
        out[f"sigma_x{s}"] = sigma_x
        out[f"sigma_y{s}"] = 0.2 + sigma * v[at + 4] if anisotropic else sigma_x
        out[f"rotation{s}"] = -math.pi + 2 * math.pi * v[at + 5] if anisotropic else 0
        out[f"beta{s}"] = beta
        start = math.pi / 3 if size < 13 else math.pi / 5
        out[f"omega{s}"] = start + (math.pi - start) * v[at + 8]

    def rest(
        at: int, s: int, up: float, down: float, u: float, d: float, n: float, p: float
    ) -> None:
        if v[at] < up:
            scale = 1 + u * v[at + 1]
        elif v[at] < down:
            scale = d + (1 - d) * v[at + 1]
        else:
            scale = 1
        gaussian = v[at + 3] < 0.5
        level = v[at + 4]
        out[f"resize_scale{s}"] = scale
        out[f"resize_mode{s}"] = math.floor(3 * v[at + 2])
        out[f"noise_type{s}"] = 0 if gaussian else 1
        out[f"noise_level{s}"] = level
        out[f"noise_strength{s}"] = 1 + (n - 1) * level if gaussian else 0.05 + (p - 0.05) * level
        out[f"gray_noise{s}"] = v[at + 5] < 0.4
        out[f"jpeg_quality{s}"] = 30 + 65 * v[at + 6]

    blur(0, 1, 2.8)
    rest(9, 1, 0.2, 0.9, 0.5, 0.15, 30, 3)
    blur(17, 2, 1.3)
    rest(26, 2, 0.3, 0.7, 0.2, 0.3, 25, 2.5)
    out["blur1"], out["blur2"] = True, v[16] < 0.8
    out["jpeg1"] = out["jpeg2"] = True
    out["final.sinc"] = v[33] < 0.8
    out["final.kernel_size"] = 7 + 2 * math.floor(8 * v[34])
    out["final.omega"] = math.pi / 3 + 2 * math.pi / 3 * v[35]
    out["final.before_jpeg"] = v[36] < 0.5
    out["final.resize_mode"] = math.floor(3 * v[37])
    return out


def test_maps_are_those_of_the_table() -> None:
    parameters = drawn(500, seed=11)
    for i, row in enumerate(parameters.cube.numpy()):
        for name, value in by_hand(row).items():
            if name.startswith("final."):
                got = getattr(parameters.final, name[6:])[i]
            else:
                got = getattr(
                    getattr(parameters, ("first", "second")[int(name[-1]) - 1]), name[:-1]
                )[i]
            assert got.item() == pytest.approx(value, abs=1e-12), (i, name)


def test_a_row_is_the_same_in_a_long_table() -> None:
    ids = torch.arange(3000)
    table = draw_parameters(REALESRGAN_X4, ids, 2, 7)
    assert torch.equal(table.cube, draw_cube(ids, 2, 7))
    for i in (0, 1023, 1024, 2999):
        alone = draw_parameters(REALESRGAN_X4, [i], 2, 7)
        for name in ("kernel_size", "sigma_y", "beta", "omega", "noise_strength", "jpeg_quality"):
            for stage in ("first", "second"):
                whole, row = (getattr(getattr(p, stage), name) for p in (table, alone))
                assert torch.equal(whole[i : i + 1], row)
        assert torch.equal(table.seed[i : i + 1], alone.seed)


def test_columns_are_named_once() -> None:
    assert len(COLUMNS) == len(set(COLUMNS)) == 38
    assert COLUMNS[0] == "kernel_size_1"
    assert COLUMNS[13] == "noise_level_1"
    assert COLUMNS[16] == "blur_2"
    assert COLUMNS[17] == "kernel_size_2"
    assert COLUMNS[32] == "jpeg_quality_2"
    assert COLUMNS[37] == "final_resize_mode"


def test_every_operator_can_be_switched_off_by_its_number() -> None:
    space = changed(
        REALESRGAN_X4,
        first={"blur": {"on": 0.6}, "noise": {"on": 0.5}, "jpeg": {"on": 0.3}},
        second={"jpeg": {"on": 0.0}, "noise": {"on": 0.0}, "blur": {"on": 0.0}},
    )
    p = drawn(20_000, space)
    first = p.first
    for flag, share in ((first.blur, 0.6), (first.noise_type < 2, 0.5), (first.jpeg, 0.3)):
        assert abs(flag.double().mean().item() - share) < 0.015
    # Given that it is on, the operator's own law is untouched.
    assert abs(first.sinc[first.blur].double().mean().item() - 0.1) < 0.015
    assert not first.sinc[~first.blur].any()
    quality = first.jpeg_quality[first.jpeg].numpy()
    assert stats.kstest(quality, stats.uniform(30, 65).cdf).pvalue > 1e-4
    assert (first.jpeg_quality[~first.jpeg] == 100).all()
    assert (first.noise_strength[first.noise_type == 2] == 0).all()
    assert not p.second.jpeg.any()
    assert not p.second.blur.any()
    assert (p.second.noise_type == 2).all()


def test_rows_are_indexed_together() -> None:
    p = drawn(6)
    assert len(p) == 6
    assert len(p[2]) == 1
    assert len(p[-1]) == 1
    assert torch.equal(p[-1].cube, p.cube[5:])
    assert torch.equal(p[1:4].second.sigma_x, p.second.sigma_x[1:4])
    assert torch.equal(p[torch.tensor([4, 0])].seed, p.seed[[4, 0]])
    assert len(p[p.first.sinc]) == int(p.first.sinc.sum())
    assert p[2:4].scale == 4
    assert torch.equal(p.to("cpu").final.omega, p.final.omega)
    with pytest.raises(IndexError):
        p[6]


def test_words_name_what_happens() -> None:
    cube = torch.full((1, 38), 0.5, dtype=torch.float64)
    cube[0, COLUMNS.index("noise_level_1")] = 0.25
    words = parameters_from_cube(REALESRGAN_X2, cube, torch.zeros(1, dtype=torch.long)).describe(0)
    assert "anisotropic blur 15x15" in words
    assert "Poisson noise of scale 0.79" in words
    assert "JPEG of quality 62" in words
    assert "1/2 of the HR size" in words
    # v = 1/2 puts the second JPEG before the last resize.
    assert words.rindex("JPEG") < words.rindex("sinc filter")
    for i in range(40):
        drawn(40).describe(i)


@pytest.mark.parametrize(
    ("cube", "seeds", "error", "words"),
    [
        (torch.zeros(2, 38), torch.zeros(2, dtype=torch.long), TypeError, "float64"),
        (torch.zeros(2, 38).double(), torch.zeros(2), TypeError, "int64"),
        (torch.zeros(2, 37).double(), torch.zeros(2, dtype=torch.long), ValueError, r"\[2, 37\]"),
        (torch.zeros(2, 38).double(), torch.zeros(3, dtype=torch.long), ValueError, r"\[3\]"),
        (torch.ones(2, 38).double(), torch.zeros(2, dtype=torch.long), ValueError, r"\[0, 1\)"),
        (
            torch.full((2, 38), math.nan).double(),
            torch.zeros(2, dtype=torch.long),
            ValueError,
            "nan",
        ),
    ],
)
def test_bad_rows_are_refused(
    cube: torch.Tensor, seeds: torch.Tensor, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        parameters_from_cube(REALESRGAN_X4, cube, seeds)
