from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mtlweight_sr.data import BundledPhotographs
from mtlweight_sr.degradation import REALESRGAN_X4
from mtlweight_sr.tasks import FrozenTasks, Task, TaskSpace, preset
from mtlweight_sr.tasks import separation as module
from mtlweight_sr.tasks.separation import measure_separation, separation, separation_of

MASSES = (0.5, 0.3, 0.2)
GAPS = torch.tensor([0.4, -0.2, -0.7])  # their mean by the masses is 0


@pytest.fixture(scope="module")
def source() -> BundledPhotographs:
    return BundledPhotographs("train")


def scores(seed: int, gaps: Tensor, shared: float, own: float, size: tuple[int, int]) -> Tensor:
    """Photographs with levels of their own, rows that tasks share, noise of each score."""
    generator = torch.Generator().manual_seed(seed)
    photographs, rows = size

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return (
        9 * normal(photographs, 1, 1)
        + shared * normal(photographs, rows, 1)
        + own * normal(photographs, rows, 3)
        + gaps
    )


@pytest.mark.parametrize(("shared", "own"), [(0.0, 1.0), (1.0, 0.5), (2.0, 0.0)])
@pytest.mark.parametrize("size", [(1, 20), (6, 5)])
def test_the_share_is_unbiased_and_its_error_is_right(
    shared: float, own: float, size: tuple[int, int]
) -> None:
    p = torch.tensor(MASSES)
    between = float((GAPS.square() * p).sum())
    total = between + shared**2 + own**2
    found = [separation(scores(s, GAPS, shared, own, size), MASSES) for s in range(200)]
    shares, errors, deviations = (torch.tensor(column) for column in zip(*found, strict=True))
    # A ratio of unbiased estimates has a bias of its own, of the order of one over the rows.
    assert float(shares.mean()) == pytest.approx(between / total, abs=0.1 * between / total + 0.005)
    assert float(deviations.square().mean()) == pytest.approx(total, rel=0.05)
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(shares.std()), rel=0.35)


def test_nothing_between_tasks_is_zero_on_average() -> None:
    found = torch.tensor(
        [separation(scores(s, 0 * GAPS, 0, 1, (3, 4)), MASSES)[0] for s in range(225)]
    )
    assert abs(found.mean()) < 3 * found.std() / 15
    # Without the correction every one of them would be positive.
    assert (found < 0).double().mean() > 0.3


def test_rows_that_tasks_share_cancel() -> None:
    paired, alone = (
        torch.tensor(
            [separation(scores(s, GAPS, a, b, (2, 10)), MASSES)[0] for s in range(100)]
        ).std()
        for a, b in ((1.0, 0.05), (0.0, 1.0))
    )
    assert paired < 0.6 * alone


def test_scores_without_variance_have_no_share() -> None:
    assert separation(torch.ones(2, 3, 3), MASSES) == (0, 0, 0)
    share, error, deviation = separation(torch.ones(2, 3, 3) + GAPS, MASSES)
    assert share == pytest.approx(1)
    assert error == pytest.approx(0, abs=1e-9)
    assert deviation > 0
    with pytest.raises(ValueError, match="at least 3 rows"):
        separation(torch.ones(2, 2, 3), MASSES)


def test_tasks_that_look_different_are_apart(source: BundledPhotographs) -> None:
    found = measure_separation(preset("dasr3"), source, rows=90, crop=64)
    assert found.share > 0.4
    assert found.gaps["weak"] > found.gaps["standard"] > found.gaps["severe"]
    assert found.rows == 90
    assert found.photographs == 5
    words = found.describe()
    assert f"{found.share:.1%} ± {found.error:.1%}" in words
    assert f"severe {found.gaps['severe']:+.2f}" in words
    assert "little" not in words


def test_tasks_that_look_alike_are_not(source: BundledPhotographs) -> None:
    tasks = TaskSpace(
        REALESRGAN_X4,
        [
            Task.from_ranges(REALESRGAN_X4, "small", final_kernel_size=(7, 13)),
            Task.from_ranges(REALESRGAN_X4, "large", final_kernel_size=(15, 21)),
        ],
    )
    found = measure_separation(tasks, source, rows=60, crop=64)
    assert abs(found.share) < max(3 * found.error, 0.005)
    assert "little" in found.describe()


def test_the_same_arguments_give_the_same_numbers(source: BundledPhotographs) -> None:
    tasks = FrozenTasks.sample(REALESRGAN_X4, 8, 0)
    one, other = (measure_separation(tasks, source, rows=24, crop=32) for _ in range(2))
    assert one == other
    assert one.rows == 24  # three for each of eight tasks, on one photograph
    assert measure_separation(tasks, source, rows=24, crop=32, seed=1) != one


def test_it_is_measured_once_for_a_file(
    source: BundledPhotographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def measure(tasks: object, photographs: object) -> module.Separation:
        calls.append(tasks)
        return measure_separation(tasks, photographs, rows=12, crop=32)

    monkeypatch.setattr(module, "measure_separation", measure)
    file = tmp_path / "separation.json"
    two = preset("paper2")
    first = separation_of(file, two, source)
    assert separation_of(file, preset("paper2"), source) == first
    assert len(calls) == 1
    separation_of(file, preset("paper4"), source)
    separation_of(file, preset("paper4"), BundledPhotographs("val"))
    assert len(calls) == 3
    file.write_text("{")
    assert separation_of(file, two, source) == first
    assert len(calls) == 4


def test_bad_measurements_are_refused(source: BundledPhotographs) -> None:
    with pytest.raises(ValueError, match="`rows` >= 1, got 0"):
        measure_separation(preset("paper2"), source, rows=0)
    with pytest.raises(ValueError, match="at least 12 pixels, got 8"):
        measure_separation(preset("paper2"), source, crop=8)


def test_tasks_of_a_part_of_the_space_are_compared_with_their_mixture(
    source: BundledPhotographs,
) -> None:
    ranges = {"weak": (0.0, 0.2), "strong": (0.8, 1.0)}
    tasks = TaskSpace(
        REALESRGAN_X4,
        [Task.from_ranges(REALESRGAN_X4, name, noise_level_2=r) for name, r in ranges.items()],
        partial=True,
    )
    found = measure_separation(tasks, source, rows=24, crop=64)
    assert sum(found.gaps.values()) == pytest.approx(0, abs=1e-6)
    assert found.gaps["weak"] > 0
