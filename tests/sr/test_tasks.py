from __future__ import annotations

import copy
import itertools
import json
import math
import pickle
from collections.abc import Sequence
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.utils.data import DataLoader, Dataset

from mtlweight import QuotaSampler
from mtlweight_sr.degradation import (
    COLUMNS,
    DASR_SEVERE,
    DASR_STANDARD,
    DASR_WEAK,
    FAMILIES,
    REALESRGAN_X2,
    REALESRGAN_X4,
    Component,
    DegradationParameters,
    Mixture,
    degrade,
    draw_cube,
    draw_seeds,
    parameters_from_cube,
)
from mtlweight_sr.degradation.boxes import uncovered
from mtlweight_sr.replay import recorded, replayed
from mtlweight_sr.tasks import (
    PRESETS,
    Box,
    FrozenTasks,
    ScoreTaskSpace,
    Task,
    TaskDraws,
    TaskSpace,
    components,
    equal_mass,
    grid,
    paper,
    preset,
    task_from_ranges,
    tree,
    two_stage4,
)

SPACE = REALESRGAN_X4
HALF, QUARTER = Fraction(1, 2), Fraction(1, 4)
BOXED = [name for name in PRESETS if name != "physical4"]
REALESRGAN = [name for name in PRESETS if name != "dasr3"]
DASR = {"weak": DASR_WEAK, "standard": DASR_STANDARD, "severe": DASR_SEVERE}


def mixture(tasks: TaskDraws, n: int, seed: int = 0) -> DegradationParameters:
    """`n` samples, each task by its natural probability."""
    masses = np.array([float(mass) for mass in tasks.masses.values()])
    edges = np.round(np.cumsum(masses) * n)
    task_ids = torch.from_numpy(np.searchsorted(edges, np.arange(n), side="right"))
    # Ids in another order than tasks: neighbours must not share anything.
    return tasks.draw(task_ids, torch.randperm(n, generator=torch.Generator().manual_seed(1)), seed)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("scale", [2, 4])
def test_masses_sum_to_one_and_every_task_has_words(name: str, scale: int) -> None:
    tasks = preset(name, scale)
    assert sum(tasks.masses.values()) == Fraction(1)
    assert tuple(tasks.masses) == tasks.names
    if name == "dasr3":
        found = {part.name: part.space for part in tasks.space.components}
        assert found == {k: v.model_copy(update={"scale": scale}) for k, v in DASR.items()}
    else:
        assert tasks.space == (REALESRGAN_X4 if scale == 4 else REALESRGAN_X2)
    lines = tasks.describe().splitlines()
    assert len(lines) == len(tasks.names)
    for line, task in zip(lines, tasks.names, strict=True):
        assert line.startswith(f"{task} (p = ")
        assert len(line) > len(task) + 30


def test_paper_presets_have_their_exact_masses() -> None:
    masses = {name: tuple(preset(name).masses.values()) for name in BOXED}
    assert masses["paper2"] == (HALF, HALF)
    assert masses["paper3"] == (QUARTER, HALF, QUARTER)
    assert masses["paper4"] == (QUARTER,) * 4
    assert masses["paper5"] == (QUARTER, QUARTER, QUARTER, QUARTER / 2, QUARTER / 2)
    assert masses["two_stage4"] == tuple(Fraction(n, 40) for n in (11, 9, 11, 9))
    assert masses["dasr3"] == (Fraction(3, 10), Fraction(3, 10), Fraction(2, 5))
    assert preset("paper4").names == ("mild", "blur", "noise", "severe")
    for mass in preset("physical4").masses.values():
        assert 0.2 < mass < 0.3


def test_paper4_is_what_it_says() -> None:
    tasks = preset("paper4")
    p = tasks.draw_natural(range(2000), 0)
    expected = (p.first.kernel_size >= 15).long() + 2 * (p.first.noise_level >= 0.5).long()
    assert torch.equal(tasks.assign(p), expected)
    words = tasks.describe().splitlines()
    assert "kernel_size_1 in {15, 17, 19, 21}" in words[1]
    assert "noise_level_1 in [0.5, 1)" in words[2]


def test_two_stage4_is_what_it_says() -> None:
    tasks = preset("two_stage4")
    p = tasks.draw_natural(range(5000), 0)
    both = p.first.kernel_size + p.second.kernel_size * p.second.blur
    expected = (both >= 28).long() + 2 * (p.second.noise_level >= 0.5).long()
    assert torch.equal(tasks.assign(p), expected)


@pytest.mark.parametrize("name", PRESETS)
def test_every_draw_lies_in_its_task(name: str) -> None:
    tasks = preset(name)
    n = 600 if name == "physical4" else 20_000
    task_ids = torch.arange(n) % len(tasks.names)
    p = tasks.draw(task_ids, range(n), 3)
    assert torch.equal(tasks.assign(p), task_ids)
    assert torch.equal(tasks.assign(p.cube), task_ids)
    assert ((p.cube >= 0) & (p.cube < 1)).all()


@pytest.mark.parametrize("name", PRESETS)
def test_natural_frequencies_are_the_masses(name: str) -> None:
    tasks = preset(name)
    n = 4000 if name == "physical4" else 40_000
    found = torch.bincount(
        tasks.assign(tasks.draw_natural(range(n), 8)), minlength=len(tasks.names)
    )
    expected = np.array([float(mass) for mass in tasks.masses.values()]) * n
    assert stats.chisquare(found.numpy(), expected).pvalue > 1e-4


def cells(p: DegradationParameters) -> np.ndarray:
    """Joint cell of both kernel sizes, the second blur's switch and halves of both noise levels."""
    first = (p.first.kernel_size - 7) // 2
    second = (p.second.kernel_size - 7) // 2
    levels = 2 * (p.first.noise_level >= 0.5).long() + (p.second.noise_level >= 0.5).long()
    return (((first * 8 + second) * 2 + p.second.blur.long()) * 4 + levels).numpy()


def cell_probabilities() -> np.ndarray:
    on = np.tile(np.repeat([0.2, 0.8], 4), 64)
    return on / 64 / 4


@pytest.mark.parametrize("name", REALESRGAN)
def test_the_mixture_is_the_original_distribution(name: str) -> None:
    tasks = preset(name)
    n = 3000 if name == "physical4" else 80_000
    p = mixture(tasks, n, seed=21)
    probabilities = cell_probabilities()
    counts = np.bincount(cells(p), minlength=512)
    assert stats.chisquare(counts, probabilities * n).pvalue > 1e-4
    for i, column in enumerate(p.cube.numpy().T):
        assert stats.kstest(column, "uniform").pvalue > 1e-4, COLUMNS[i]


def test_the_test_of_the_mixture_can_fail() -> None:
    """Equal quotas in place of natural ones give another distribution, and the tests see it."""
    tasks = preset("two_stage4")
    n = 80_000
    p = tasks.draw(torch.arange(n) % 4, range(n), 21)
    counts = np.bincount(cells(p), minlength=512)
    assert stats.chisquare(counts, cell_probabilities() * n).pvalue < 1e-10


def test_continuous_parameters_of_the_mixture_keep_their_laws() -> None:
    p = mixture(preset("paper4"), 40_000, seed=5)
    gaussian = p.first.noise_type == 0
    laws = {
        "sigma_x": (p.first.sigma_x, stats.uniform(0.2, 2.8)),
        "sigma": (p.first.noise_strength[gaussian], stats.uniform(1, 29)),
        "scale": (p.first.noise_strength[~gaussian], stats.uniform(0.05, 2.95)),
        "quality": (p.second.jpeg_quality, stats.uniform(30, 65)),
        "small cutoff": (
            p.first.omega[p.first.kernel_size < 13],
            stats.uniform(math.pi / 3, 2 * math.pi / 3),
        ),
        "large cutoff": (
            p.first.omega[p.first.kernel_size >= 13],
            stats.uniform(math.pi / 5, 4 * math.pi / 5),
        ),
    }
    for name, (values, law) in laws.items():
        assert stats.kstest(values.numpy(), law.cdf).pvalue > 1e-4, name


def test_inside_a_task_boxes_keep_their_shares() -> None:
    """`blur_or_noise` is two boxes of equal volume, one with slices of unequal volume."""
    tasks = TaskSpace(
        SPACE,
        [
            Task("a", (Box({"noise_level_1": (0, 0.125)}), Box({"noise_level_1": (0.25, 1)}))),
            Task("b", (Box({"noise_level_1": (0.125, 0.25)}),)),
        ],
    )
    n = 40_000
    level = tasks.draw(torch.zeros(n, dtype=torch.long), range(n), 2).first.noise_level
    low = (level < 0.125).sum().item()
    assert stats.binomtest(low, n, (1 / 8) / (7 / 8)).pvalue > 1e-4
    assert stats.kstest(level[level >= 0.25].numpy(), stats.uniform(0.25, 0.75).cdf).pvalue > 1e-4


def test_tasks_share_the_row_of_an_id() -> None:
    """Common random numbers: only the cut columns differ between tasks."""
    tasks = preset("paper4")
    ids = range(50)
    draws = [tasks.draw(torch.full((50,), t), ids, 4) for t in range(4)]
    natural = draw_cube(ids, 4)
    kept = [i for i, c in enumerate(COLUMNS) if c not in ("kernel_size_1", "noise_level_1")]
    for p in draws:
        assert torch.equal(p.cube[:, kept], natural[:, kept])
        assert torch.equal(p.seed, draws[0].seed)
    assert torch.equal(draws[0].first.noise_level * 2, natural[:, COLUMNS.index("noise_level_1")])


@pytest.mark.parametrize("name", ["paper5", "two_stage4", "physical4"])
def test_a_draw_is_the_same_alone_and_in_any_batch(name: str) -> None:
    tasks = preset(name)
    task_ids, ids = torch.tensor([3, 0, 1, 2, 0]), [9, 4, 4, 123456789012, 0]
    together = tasks.draw(task_ids, ids, 7, stream=2)
    for i in range(5):
        alone = tasks.draw(task_ids[i : i + 1], ids[i : i + 1], 7, stream=2)
        assert torch.equal(alone.cube[0], together.cube[i])
        assert torch.equal(alone.seed[0], together.seed[i])
    assert not torch.equal(together.cube, tasks.draw(task_ids, ids, 7).cube)


def value(p: DegradationParameters, name: str) -> torch.Tensor:
    stage, field = {"1": p.first, "2": p.second}[name[-1]], name[:-2]
    if field in ("noise_sigma", "noise_scale"):
        kind = 0 if field == "noise_sigma" else 1
        return torch.where(stage.noise_type == kind, stage.noise_strength, math.nan)
    return getattr(stage, field)


@pytest.mark.parametrize(
    ("name", "low", "high", "mass"),
    [
        ("noise_sigma_1", 15.5, 30, QUARTER),
        ("noise_scale_1", 1.525, 3, QUARTER),
        ("noise_level_2", 0.2, 0.7, HALF),
        ("kernel_size_1", 15, 21, HALF),
        ("kernel_size_2", 8, 12, QUARTER),
        ("sigma_x_2", 0.2, 0.85, HALF),
        ("sigma_y_1", 1.6, 3, HALF),
        ("rotation_1", 0, math.pi, Fraction(69, 100) + Fraction(31, 200)),
        ("beta_1", 1, 1.5, None),
        ("omega_1", 2, 3, None),
        ("resize_scale_1", 0.575, 1.25, Fraction(1, 10) + Fraction(1, 10) + Fraction(7, 20)),
        ("resize_scale_2", 0.3, 1, Fraction(2, 5)),
        ("jpeg_quality_1", 30, 43, Fraction(1, 5)),
    ],
)
def test_ranges_in_physical_units_are_exact(
    name: str, low: float, high: float, mass: Fraction | None
) -> None:
    task = Task.from_ranges(SPACE, "some", **{name: (low, high)})
    if mass is not None:
        assert task.mass == mass
    tasks = TaskSpace(SPACE, [task], partial=True)
    natural = tasks.draw_natural(range(4000), 1)
    values = value(natural, name)
    if name.startswith("kernel_size"):
        inside = (values >= low) & (values <= high)
    else:
        top = {"omega_1": math.pi, "beta_1": 4.0, "resize_scale_1": 1.5, "resize_scale_2": 1.2}
        inside = (values >= low) & ((values < high) | (high >= top.get(name, math.inf)))
    assert torch.equal(tasks.assign(natural), torch.where(inside, 0, -1))
    drawn = value(tasks.draw(torch.zeros(2000, dtype=torch.long), range(2000), 1), name)
    assert ((drawn >= low - 1e-9) & (drawn <= high + 1e-9)).all()


def test_named_values_and_switches() -> None:
    assert Task.from_ranges(SPACE, "a", family_1="isotropic").mass == Fraction(9, 20)
    some = Task.from_ranges(SPACE, "a", family_1=["isotropic", "plateau_isotropic"])
    assert some.mass == Fraction(57, 100)
    assert Task.from_ranges(SPACE, "a", blur_2=False).mass == Fraction(1, 5)
    assert Task.from_ranges(SPACE, "a", sinc_1=True, final_sinc=False).mass == Fraction(1, 50)
    assert Task.from_ranges(SPACE, "a", resize_mode_2=("area", "bicubic")).mass == Fraction(2, 3)
    assert Task.from_ranges(SPACE, "a", noise_type_1="poisson").mass == HALF
    assert Task.from_ranges(SPACE, "a", kernel_size_1=[7, 21]).mass == QUARTER
    families = Task.from_ranges(SPACE, "a", family_2=list(FAMILIES))
    assert families.mass == 1


@settings(max_examples=60, deadline=None)
@given(
    st.floats(1, 30),
    st.floats(1, 30),
    st.sampled_from(range(7, 23, 2)),
    st.sampled_from([0.3, 0.8]),
)
def test_neighbouring_ranges_share_nothing_and_lose_nothing(
    a: float, b: float, size: int, level: float
) -> None:
    cuts = sorted({1.0, a, b, 30.0})
    tasks = [
        Task.from_ranges(SPACE, f"sigma{i}", noise_sigma_1=(low, high))
        for i, (low, high) in enumerate(itertools.pairwise(cuts))
    ]
    poisson = [
        Task.from_ranges(SPACE, "weak", noise_type_1="poisson", kernel_size_2=(7, size)),
        Task.from_ranges(SPACE, "strong", noise_type_1="poisson", kernel_size_2=(size + 1, 21))
        if size < 21
        else None,
    ]
    whole = TaskSpace(SPACE, [*tasks, *(t for t in poisson if t)])
    assert sum(whole.masses.values()) == 1
    assert (whole.assign(whole.draw_natural(range(500), 0)) >= 0).all()


def test_a_user_defines_tasks() -> None:
    strong = task_from_ranges(SPACE, "strong", kernel_size_1=(15, 21), noise_level_1=(0.5, 1.0))
    weak = Task.from_ranges(SPACE, "weak", kernel_size_1=(7, 13))
    rest = Task.from_ranges(SPACE, "rest", kernel_size_1=(15, 21), noise_level_1=(0, 0.5))
    tasks = TaskSpace(SPACE, [strong, weak, rest])
    assert tasks.masses == {"strong": QUARTER, "weak": HALF, "rest": QUARTER}
    assert "kernel_size_1 from 15 to 21, noise_level_1 from 0.5 to 1" in tasks.describe()


def test_partial_spaces_leave_rows_unassigned() -> None:
    tasks = TaskSpace(
        SPACE, [Task.from_ranges(SPACE, "gray", gray_noise_1=True, gray_noise_2=True)], partial=True
    )
    assert tasks.masses == {"gray": Fraction(4, 25)}
    p = tasks.draw_natural(range(1000), 0)
    both = p.first.gray_noise & p.second.gray_noise
    assert torch.equal(tasks.assign(p), both.long() - 1)


def test_grid_and_equal_mass() -> None:
    cells = grid(SPACE, (13, 19), (0.25, 0.5))
    assert len(cells.names) == 9
    assert cells.names[:4] == ("blur0_noise0", "blur0_noise1", "blur0_noise2", "blur1_noise0")
    assert cells.masses["blur0_noise0"] == Fraction(3, 8) * QUARTER
    assert cells.masses["blur2_noise2"] == QUARTER * HALF
    assert grid(SPACE, (15,), (0.5,)).masses == dict.fromkeys(
        ("blur0_noise0", "blur0_noise1", "blur1_noise0", "blur1_noise1"), QUARTER
    )
    assert grid(SPACE, (), ()).masses == {"blur0_noise0": 1}
    for n in (1, 3, 7):
        assert set(equal_mass(SPACE, n).masses.values()) == {Fraction(1, n)}
    thirds = equal_mass(SPACE, 3)
    ids = torch.arange(3000) % 3
    assert torch.equal(thirds.assign(thirds.draw(ids, range(3000), 0)), ids)


def test_physical_tasks_differ_in_effective_strength() -> None:
    from mtlweight_sr.degradation.strength import effective_blur, effective_noise

    tasks = preset("physical4")
    assert isinstance(tasks, ScoreTaskSpace)
    p = tasks.draw(torch.arange(400) % 4, range(400), 0)
    blur, noise = effective_blur(p).view(-1, 4), effective_noise(p).view(-1, 4)
    assert blur[:, [0, 2]].max() < tasks.blur_median <= blur[:, [1, 3]].min()
    assert noise[:, [0, 1]].max() < tasks.noise_median <= noise[:, [2, 3]].min()


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        ({}, "at least one range"),
        ({"kernel_size": (7, 9)}, "kernel_size"),
        ({"noise_sigma_1": (0, 5)}, r"within \(1, 30\)"),
        ({"noise_sigma_1": (20, 10)}, r"\(20, 10\)"),
        ({"noise_sigma_1": 5}, "continuous"),
        ({"noise_sigma_1": (5, 5)}, "probability"),
        ({"kernel_size_1": 8}, "8"),
        ({"kernel_size_1": (8, 8)}, "probability"),
        ({"family_1": "box"}, "box"),
        ({"family_1": (0, 2)}, "isotropic"),
        ({"blur_2": []}, "blur_2"),
        ({"noise_sigma_1": (1, 30), "noise_type_1": "poisson"}, "exclude"),
        ({"blur_1": False}, "False"),
    ],
)
def test_ranges_that_are_no_boxes_are_refused(ranges: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Task.from_ranges(SPACE, "some", **ranges)


def test_bad_partitions_are_refused() -> None:
    low, high = Box({"noise_level_1": (0, HALF)}), Box({"noise_level_1": (HALF, 1)})
    with pytest.raises(ValueError, match=r"1/2 = 0\.5: 1/2 is in no task.*noise_level_1 in \[0.5"):
        TaskSpace(SPACE, [Task("low", (low,))])
    with pytest.raises(ValueError, match=r"disjoint tasks, got 'all' and 'low'.*1/2.*\[0, 0.5\)"):
        TaskSpace(SPACE, [Task("all", (Box({}),)), Task("low", (low,))])
    with pytest.raises(TypeError, match="sequence of Task"):
        TaskSpace(SPACE, Task("all", (Box({}),)))
    with pytest.raises(ValueError, match="different names"):
        TaskSpace(SPACE, [Task("a", (low,)), Task("a", (high,))])
    with pytest.raises(ValueError, match="different names"):
        TaskSpace(SPACE, [])
    cut = Fraction(2, 5)
    with pytest.raises(ValueError, match=r"kernel_size_1.*1/8"):
        TaskSpace(
            SPACE,
            [
                Task("a", (Box({"kernel_size_1": (0, cut)}),)),
                Task("b", (Box({"kernel_size_1": (cut, 1)}),)),
            ],
        )
    with pytest.raises(ValueError, match="disjoint `boxes`"):
        Task("a", (low, Box({})))
    with pytest.raises(ValueError, match="at least one box"):
        Task("a", ())
    with pytest.raises(ValueError, match="kernel_size'"):
        Box({"kernel_size": (0, 1)})
    with pytest.raises(ValueError, match="low < high"):
        Box({"sigma_x_1": (HALF, HALF)})
    with pytest.raises(ValueError, match="low < high"):
        Box({"sigma_x_1": (0, 1.5)})


def test_bad_draws_are_refused() -> None:
    frozen = FrozenTasks.sample(SPACE, 4, 0)
    for tasks in (preset("paper4"), preset("physical4"), frozen):
        with pytest.raises(ValueError, match=f"among {tasks.names[0]}.*'blurry'"):
            tasks.draw("blurry", range(2), 0)
        with pytest.raises(ValueError, match="2 ids"):
            tasks.draw([tasks.names[0]], range(2), 0)
        with pytest.raises(TypeError, match="float32"):
            tasks.draw(torch.zeros(2), range(2), 0)
        with pytest.raises(ValueError, match="2 ids"):
            tasks.draw(torch.zeros(3, dtype=torch.long), range(2), 0)
        for bad in (-1, 4):
            with pytest.raises(ValueError, match=str(bad)):
                tasks.draw(torch.tensor([0, bad]), range(2), 0)


def test_bad_presets_and_cuts_are_refused() -> None:
    with pytest.raises(ValueError, match="paper6"):
        preset("paper6")
    with pytest.raises(ValueError, match="scale"):
        preset("paper4", 3)
    with pytest.raises(ValueError, match="`n`"):
        equal_mass(SPACE, 0)
    for blur in ((7,), (15, 13), (22,)):
        with pytest.raises(ValueError, match="`blur_cuts`"):
            grid(SPACE, blur, ())
    for noise in ((0.0,), (0.5, 0.4), (1.0,)):
        with pytest.raises(ValueError, match="`noise_cuts`"):
            grid(SPACE, (), noise)


def test_a_space_without_noise_has_no_physical_tasks() -> None:
    document = SPACE.model_dump()
    for stage in ("first", "second"):
        document[stage]["noise"]["on"] = 0.0
    with pytest.raises(ValueError, match="vary"):
        ScoreTaskSpace(type(SPACE).model_validate(document))


def same(a: DegradationParameters, b: DegradationParameters) -> None:
    """Asserts that two tables differ in nothing but the rows of the cube."""
    for one, other in ((a.first, b.first), (a.second, b.second), (a.final, b.final)):
        for field in fields(one):
            x, y = getattr(one, field.name), getattr(other, field.name)
            assert x.dtype == y.dtype
            assert ((x.double() - y.double()).abs() < 1e-12).all(), field.name
    assert torch.equal(a.seed, b.seed)


# --- mixtures of spaces --------------------------------------------------------------------------


@pytest.mark.parametrize("name", DASR)
def test_a_component_is_its_own_space_row_by_row(name: str) -> None:
    """The uniform that picks the component serves once more inside it, rescaled."""
    drawn = preset("dasr3").draw(name, range(400), 3)
    own = parameters_from_cube(DASR[name], draw_cube(range(400), 3), draw_seeds(range(400), 3))
    same(drawn, own)
    assert torch.equal(drawn.cube[:, :-1], own.cube[:, :-1])


def test_the_mixture_of_spaces_is_the_mixture_of_its_components() -> None:
    tasks = preset("dasr3")
    n = 20_000
    for p in (mixture(tasks, n, seed=6), tasks.draw_natural(range(n), 6)):
        for i, column in enumerate(p.cube.numpy().T):
            assert stats.kstest(column, "uniform").pvalue > 1e-4, COLUMNS[i]
        found = tasks.assign(p)
        counts = torch.bincount(found, minlength=3).numpy()
        assert stats.chisquare(counts, np.array([0.3, 0.3, 0.4]) * n).pvalue > 1e-4
        for task, (low, high) in enumerate(((1, 10), (1, 20), (1, 30))):
            sigma = p.first.noise_strength[(found == task) & (p.first.noise_type == 0)].numpy()
            assert stats.kstest(sigma, stats.uniform(low, high - low).cdf).pvalue > 1e-4
        modes = p.final.resize_mode[found == 1]
        assert stats.chisquare(torch.bincount(modes, minlength=3).numpy()).pvalue > 1e-4
        assert not p.second.jpeg[found < 2].any()
        assert p.second.jpeg[found == 2].all()


def test_a_mixture_is_cut_further_like_any_space() -> None:
    space = preset("dasr3").space
    severe = [
        Task.from_ranges(space, name, component="severe", noise_level_2=side)
        for name, side in (("low", (0, 0.5)), ("high", (0.5, 1)))
    ]
    light = Task.from_ranges(space, "light", component=["weak", "standard"])
    tasks = TaskSpace(space, [light, *severe])
    assert tuple(tasks.masses.values()) == (Fraction(3, 5), Fraction(1, 5), Fraction(1, 5))
    p = tasks.draw_natural(range(3000), 0)
    level = torch.where(p.second.jpeg, 1 + (p.second.noise_level >= 0.5).long(), 0)
    assert torch.equal(tasks.assign(p), level)
    some = Task.from_ranges(space, "some", noise_sigma_1=(5, 10), component="standard")
    assert some.mass == Fraction(3, 10) * HALF * Fraction(5, 19)
    drawn = TaskSpace(space, [some], partial=True).draw("some", range(500), 1)
    assert ((drawn.first.noise_strength >= 5) & (drawn.first.noise_strength < 10)).all()
    words = TaskSpace(space, [Task("x", severe[0].boxes)], partial=True).describe()
    assert words == "x (p = 1/5): severe: noise_level_2 in [0, 0.5)"
    with pytest.raises(ValueError, match=r"share a probability of 1/5.*severe: noise_level_2 in"):
        TaskSpace(space, [Task.from_ranges(space, "all", component="severe"), severe[1]])
    with pytest.raises(ValueError, match=r"'weak', 'standard', 'severe'.*'mild'"):
        Task.from_ranges(space, "mild", component="mild")


def test_mixtures_are_read_back_from_json_and_checked() -> None:
    space = preset("dasr3").space
    again = Mixture.model_validate_json(space.model_dump_json())
    assert again == space
    assert components(again).masses == preset("dasr3").masses
    thirds = [Component(name=n, share=1 / 3, space=s) for n, s in DASR.items()]
    assert set(components(Mixture(components=thirds)).masses.values()) == {Fraction(1, 3)}
    for parts, words in (
        (thirds[:2], "sum to 1"),
        ([thirds[0]] * 3, "different names"),
        ([*thirds[:2], thirds[2].model_copy(update={"space": REALESRGAN_X2})], "one scale"),
    ):
        with pytest.raises(ValueError, match=words):
            Mixture(components=parts)


# --- any number of tasks -------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(1, 9))
def test_a_tree_has_any_number_of_tasks(n: int) -> None:
    tasks = tree(SPACE, n, ("noise_level_2", "kernel_size_2"))
    assert len(tasks.names) == n
    assert sum(tasks.masses.values()) == 1
    assert max(tasks.masses.values()) <= 2 * min(tasks.masses.values())
    ids = torch.arange(2000) % n
    assert torch.equal(tasks.assign(tasks.draw(ids, range(2000), 0)), ids)


def test_a_tree_of_the_columns_of_paper4_is_paper4() -> None:
    tasks = tree(SPACE, 4, ("noise_level_1", "kernel_size_1"))
    assert tasks.names == ("low_low", "low_high", "high_low", "high_high")
    p = tasks.draw_natural(range(2000), 1)
    assert torch.equal(tasks.assign(p), preset("paper4").assign(p))


def test_a_tree_cuts_discrete_columns_between_their_values() -> None:
    tasks = tree(SPACE, 3, ("resize_mode_1",))
    assert set(tasks.masses.values()) == {Fraction(1, 3)}
    with pytest.raises(ValueError, match="`n` <= 3"):
        tree(SPACE, 4, ("resize_mode_1",))
    with pytest.raises(ValueError, match="kernel_size'"):
        tree(SPACE, 4, ("kernel_size",))
    with pytest.raises(ValueError, match="n=0"):
        tree(SPACE, 0, ("noise_level_1",))
    assert tree(SPACE, 1, ("noise_level_1",)).names == ("all",)


CUTS = st.lists(
    st.tuples(
        st.integers(0, 50),
        st.sampled_from(("noise_level_1", "noise_level_2", "sigma_x_1", "resize_scale_2")),
        st.fractions(Fraction(1, 10), Fraction(9, 10), max_denominator=20),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=40, deadline=None)
@given(CUTS, st.integers(0, 50))
def test_any_partition_is_exact(cuts: list, which: int) -> None:
    boxes = [Box({})]
    for place, column, share in cuts:
        box = boxes.pop(place % len(boxes))
        low, high = box.sides.get(column, (Fraction(0), Fraction(1)))
        middle = low + (high - low) * share
        boxes += [Box({**box.sides, column: side}) for side in ((low, middle), (middle, high))]
    assert uncovered(boxes) is None
    tasks = TaskSpace(SPACE, [Task(f"t{i}", (box,)) for i, box in enumerate(boxes)])
    assert sum(tasks.masses.values()) == 1
    natural = tasks.assign(tasks.draw_natural(range(300), 0))
    assert (natural >= 0).all()
    ids = torch.arange(300) % len(boxes)
    assert torch.equal(tasks.assign(tasks.draw(ids, range(300), 0)), ids)
    # Without one of them the rest is refused, and the box that is named lies in what is missing.
    gone = boxes.pop(which % len(boxes))
    hole = uncovered(boxes)
    assert hole is not None
    assert hole.intersect(gone) is not None
    assert not any(hole.intersect(box) for box in boxes)
    left = [Task(f"t{i}", (box,)) for i, box in enumerate(boxes)]
    with pytest.raises(ValueError, match=f"{gone.volume} is in no task"):
        TaskSpace(SPACE, left)
    assert sum(TaskSpace(SPACE, left, partial=True).masses.values()) == 1 - gone.volume


def test_presets_are_made_on_any_space() -> None:
    same_ranges = preset("dasr3").space.components[2].space
    assert set(paper(same_ranges, 2).masses.values()) == {HALF}
    assert sum(two_stage4(DASR_SEVERE).masses.values()) == 1
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 5\), got 6"):
        paper(SPACE, 6)
    document = SPACE.model_dump()
    document["first"]["blur"]["kernel_sizes"] = (7, 9)
    with pytest.raises(ValueError, match="both sides of 15"):
        paper(type(SPACE).model_validate(document))


# --- frozen rows ---------------------------------------------------------------------------------


def test_point_tasks_are_their_rows_with_fresh_noise() -> None:
    tasks = FrozenTasks.sample(SPACE, 100, 5)
    assert tasks.names[:2] == ("point001", "point002")
    assert tasks.masses == dict.fromkeys(tasks.names, Fraction(1, 100))
    p = tasks.draw(torch.tensor([7, 7, 99, 0]), [3, 4, 3, 5], 0)
    assert torch.equal(p.cube, tasks.rows.cube[[7, 7, 99, 0]])
    rows = tasks.rows[torch.tensor([7, 7, 99, 0])]
    same(p, replace(rows, seed=draw_seeds([3, 4, 3, 5], 0)))
    assert torch.equal(tasks.assign(p), torch.tensor([7, 7, 99, 0]))
    natural = tasks.draw_natural(range(50), 0)
    assert (tasks.assign(natural) == -1).all()
    assert len(tasks.describe().splitlines()) == 100
    assert "blur" in tasks.describe()


def test_groups_of_rows_are_drawn_by_their_probabilities() -> None:
    rows = FrozenTasks.sample(SPACE, 5, 0).rows
    shares = [Fraction(n, 20) for n in (1, 6, 3, 6, 4)]
    names = ["easy", "hard", "easy", "hard", "hard"]
    tasks = FrozenTasks(SPACE, rows, names=names, probabilities=shares)
    assert tasks.masses == {"easy": Fraction(1, 5), "hard": Fraction(4, 5)}
    n = 40_000
    p = mixture(tasks, n)
    places = {row.tobytes(): i for i, row in enumerate(rows.cube.numpy())}
    counts = np.bincount([places[row.tobytes()] for row in p.cube.numpy()], minlength=5)
    assert stats.chisquare(counts, np.array([float(s) for s in shares]) * n).pvalue > 1e-4
    drawn = tasks.draw("easy", range(1000), 1)
    assert (tasks.assign(drawn) == 0).all()


def test_frozen_tasks_are_read_back_bit_for_bit(tmp_path: Path) -> None:
    for space in (SPACE, preset("dasr3", 2).space):
        rows = FrozenTasks.sample(space, 6, 1).rows
        tasks = FrozenTasks(
            space, rows, names=list("abcabc"), probabilities=[0.1, 0.2, 0.3, 0.1, 0.1, 0.2]
        )
        tasks.save(tmp_path / "tasks.json")
        again = FrozenTasks.load(tmp_path / "tasks.json")
        assert again.space == space
        assert again.masses == tasks.masses
        assert again.describe() == tasks.describe()
        one, other = (t.draw(torch.arange(300) % 3, range(300), 2) for t in (tasks, again))
        assert torch.equal(one.cube, other.cube)
        same(one, other)


def test_bad_frozen_tasks_are_refused(tmp_path: Path) -> None:
    rows = FrozenTasks.sample(SPACE, 3, 0).rows
    for changes, words in (
        ({"probabilities": [0.5, 0.4, 0.2]}, "sum 1.1"),
        ({"probabilities": [0.5, 0.5]}, "each of 3 rows, got 2"),
        ({"probabilities": [1, 0.5, -0.5]}, "-0.5"),
        ({"probabilities": []}, "each of 3 rows, got 0"),
        ({"names": ["a", "b"]}, "each of 3 rows"),
        ({"names": ["a", "b", ""]}, "each of 3 rows"),
    ):
        with pytest.raises(ValueError, match=words):
            FrozenTasks(SPACE, rows, **changes)
    with pytest.raises(ValueError, match="at least one"):
        FrozenTasks(SPACE, rows[:0])
    with pytest.raises(ValueError, match="scale 2, got 4"):
        FrozenTasks(REALESRGAN_X2, rows)
    twice = rows[torch.tensor([0, 1, 0])]
    with pytest.raises(ValueError, match=r"'a' and 'c'.*resize"):
        FrozenTasks(SPACE, twice, names=["a", "b", "c"])
    assert FrozenTasks(SPACE, twice, names=["a", "b", "a"]).masses["a"] == Fraction(2, 3)
    with pytest.raises(ValueError, match=r"n=100"):
        FrozenTasks.sample(SPACE, 0, 0)
    with pytest.raises(FileNotFoundError, match=r"none.json"):
        FrozenTasks.load(tmp_path / "none.json")
    file = tmp_path / "some.json"
    tasks = FrozenTasks(SPACE, rows)
    tasks.save(file)
    content = json.loads(file.read_text())
    for broken in ({"format": 2}, {"rows": []}, {"space": {"scale": 3}}):
        file.write_text(json.dumps(content | broken))
        with pytest.raises(ValueError, match=r"FrozenTasks.save, got .*some.json"):
            FrozenTasks.load(file)
    file.write_text("{")
    with pytest.raises(ValueError, match=r"FrozenTasks.save"):
        FrozenTasks.load(file)


# --- rows as pure functions ----------------------------------------------------------------------


def spaces() -> Sequence[TaskDraws]:
    return (
        *(preset(name) for name in ("paper3", "physical4", "dasr3")),
        FrozenTasks.sample(SPACE, 3, 0),
    )


def test_tasks_are_given_by_place_or_name() -> None:
    for tasks in spaces():
        expected = tasks.draw(torch.tensor([1, 1, 1]), [4, 5, 6], 0)
        for task in (1, tasks.names[1], [1, 1, 1], [tasks.names[1]] * 3):
            found = tasks.draw(task, [4, 5, 6], 0)
            assert torch.equal(found.cube, expected.cube)
            assert torch.equal(found.seed, expected.seed)
        assert len(tasks.draw([], [], 0)) == len(tasks.draw(0, [], 0)) == 0


class Rows(Dataset):
    def __init__(self, tasks: TaskDraws) -> None:
        self.tasks = tasks

    def __getitem__(self, key: int) -> tuple[int, torch.Tensor]:
        drawn = self.tasks.draw([key.task], [key.seed], 9)
        return key.seed, drawn.cube[0]


def test_rows_do_not_depend_on_workers_or_world_size() -> None:
    tasks = preset("paper4")

    def drawn(world: int, workers: int) -> dict[int, bytes]:
        found = {}
        for rank in range(world):
            sampler = QuotaSampler.for_generated(
                5, tasks.names, num_samples=32, batch_size=8, seed=1, rank=rank, world_size=world
            )
            for seeds, cubes in DataLoader(Rows(tasks), batch_sampler=sampler, num_workers=workers):
                for seed, cube in zip(seeds.tolist(), cubes.numpy(), strict=True):
                    found[seed] = cube.tobytes()
        return found

    alone = drawn(1, 0)
    assert len(alone) == 32
    assert drawn(2, 0) == drawn(4, 1) == alone


def test_a_recorded_row_makes_its_sample_again() -> None:
    hr = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for tasks in spaces():
        row = tasks.draw([2], [77], 5)
        again = replayed(json.loads(json.dumps(recorded(row))))
        assert torch.equal(degrade(hr, again), degrade(hr, row))
        if not isinstance(tasks, FrozenTasks):
            same(parameters_from_cube(tasks.space, again.cube, again.seed), row)


def test_thirds_are_exact_in_physical_units() -> None:
    third = Fraction(1, 3)
    task = Task.from_ranges(REALESRGAN_X4, "middle", noise_level_1=(third, 2 * third))
    assert task.mass == third


@pytest.mark.parametrize("name", ["paper4", "two_stage4", "dasr3", "physical4"])
def test_tasks_travel_to_spawned_workers(name: str) -> None:
    tasks = preset(name)
    for twin in (pickle.loads(pickle.dumps(tasks)), copy.deepcopy(tasks)):
        assert twin.masses == tasks.masses
        drawn = [t.draw(1, range(3), seed=0).cube for t in (tasks, twin)]
        assert torch.equal(*drawn)


def test_a_task_by_a_place_of_numpy() -> None:
    tasks = preset("paper4")
    drawn = tasks.draw(np.int64(2), range(4), seed=0)
    assert torch.equal(drawn.cube, tasks.draw("noise", range(4), seed=0).cube)
