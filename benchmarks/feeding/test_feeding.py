"""One benchmark for each way to get crops; those of one kind of files are measured in turns.

As in `benchmarks.test_step_time`, the first test of a unit measures all of its ways, and each test
replays its own times: CPU time of this process and its workers.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import pytest

from benchmarks.conftest import selected
from benchmarks.feeding.ways import Unit, Way, cpu_seconds, ways
from benchmarks.measure import Clock

UNITS = [Unit("png", 512, 512), Unit("jpg", 321, 481), Unit("png", 1356, 2040, images=4)]


@dataclass(frozen=True)
class Case:
    unit: Unit
    way: Way

    def __str__(self) -> str:
        return f"{self.unit}-{self.way}"


@dataclass
class Result:
    """Seconds of the rounds: CPU time of all processes, and what a clock on the wall shows."""

    cpu: list[float]
    wall: list[float]


CASES = [Case(unit, way) for unit in UNITS for way in ways(unit)]
CLOCK = Clock()
_latest: dict[Unit, dict[str, Result]] = {}


def measured(unit: Unit, chosen: list[Way], rounds: int, folder: Any) -> dict[str, Result]:
    """Returns the results of a unit's ways, by their text."""
    if unit not in _latest:
        _latest.clear()
        source = unit.write(folder)
        calls = {str(way): way.build(source) for way in chosen}
        results = {name: Result([], []) for name in calls}
        for call in calls.values():
            call()
        for _ in range(rounds):
            for name, call in calls.items():
                cpu, wall = cpu_seconds(), time.perf_counter()
                call()
                results[name].cpu.append(cpu_seconds() - cpu)
                results[name].wall.append(time.perf_counter() - wall)
        _latest[unit] = results
    return _latest[unit]


@pytest.mark.benchmark(timer=CLOCK.read)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_feeding(
    case: Case, benchmark: Any, request: pytest.FixtureRequest, tmp_path_factory: Any
) -> None:
    unit, way = case.unit, case.way
    chosen = [other.way for other in selected(request, Case) if other.unit == unit]
    rounds = request.config.getoption("benchmark_min_rounds")
    folder = tmp_path_factory.mktemp("photographs") if unit not in _latest else None
    result = measured(unit, chosen, rounds, folder)[str(way)]
    benchmark.group = str(unit)
    benchmark.extra_info.update(
        feeding=way.name,
        files=str(unit),
        workers=way.workers,
        cpu_per_item=median(result.cpu) / way.count,
        wall_per_item=min(result.wall) / way.count,
    )
    benchmark.pedantic(partial(CLOCK.move, iter(result.cpu)), rounds=len(result.cpu))
