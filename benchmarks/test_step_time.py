"""One benchmark for each contender on each problem; they are measured in turns, unit by unit.

A unit is a problem, a number of tasks, and a group of contenders. pytest-benchmark measures one
function after the other, so that a busy machine slows some and not others. Here the first test of
a unit measures all of the unit's contenders in turns, and each test replays its own times on a
clock that it gives to pytest-benchmark, whose tables, JSON and comparisons then hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pytest

from benchmarks.conftest import CANNOT_RUN, selected
from benchmarks.contenders import Contender, Group, floors, limits, ours
from benchmarks.measure import Clock, Result, measure
from benchmarks.peers import peers
from benchmarks.problems import build_problem


class Unit(NamedTuple):
    problem: str
    tasks: int
    group: Group

    def __str__(self) -> str:
        return f"{self.problem}-T{self.tasks}-{self.group}"

    @property
    def slow(self) -> bool:
        """Whether a step takes so long that not all ways of all peers are tried."""
        return self.problem == "resnet18" or self.tasks > 16


UNITS = [
    *(Unit("mlp", tasks, "losses") for tasks in (3, 8, 16, 40)),
    *(Unit("mlp", tasks, "features") for tasks in (3, 8)),
    *(Unit("mlp", tasks, "parameters") for tasks in (3, 8, 16, 40)),
    Unit("conv", 4, "parameters"),
    *(Unit("resnet18", tasks, "losses") for tasks in (3, 8)),
    *(Unit("resnet18", tasks, "features") for tasks in (3, 8)),
    *(Unit("resnet18", tasks, "parameters") for tasks in (3, 8)),
]


@dataclass(frozen=True)
class Case:
    unit: Unit
    contender: Contender

    def __str__(self) -> str:
        return f"{self.unit}-{self.contender}"


def contenders(unit: Unit) -> list[Contender]:
    """Returns who steps in a unit: the limits themselves too, to see the noise."""
    found = [*ours(unit.group), *peers(unit.group, unit.slow)]
    return [
        *limits(unit.group),
        *floors(unit.group),
        *sorted(found, key=lambda contender: contender.key),
    ]


CASES = [Case(unit, contender) for unit in UNITS for contender in contenders(unit)]


CLOCK = Clock()
_latest: dict[Unit, dict[str, Result]] = {}


def results_of(unit: Unit, request: pytest.FixtureRequest) -> dict[str, Result]:
    """Returns the results of a unit, measured now if they were not; of those selected alone."""
    if unit not in _latest:
        _latest.clear()
        plugins = request.config.pluginmanager
        reporter: Any = plugins.get_plugin("terminalreporter")
        capture: Any = plugins.get_plugin("capturemanager")

        def note(text: str) -> None:
            if reporter.verbosity > 0:
                with capture.global_and_fixture_disabled():
                    reporter.write_line(text)
                    reporter.flush()

        _latest[unit] = measure(
            build_problem(unit.problem, unit.tasks),
            limits(unit.group),
            [case.contender for case in selected(request, Case) if case.unit == unit],
            request.config.getoption("benchmark_min_rounds"),
            float(request.config.getoption("benchmark_max_time")),
            note,
        )
    return _latest[unit]


@pytest.mark.benchmark(timer=CLOCK.read)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_step(case: Case, benchmark: Any, request: pytest.FixtureRequest) -> None:
    unit, contender = case.unit, case.contender
    who: dict[str, Any] = {
        **unit._asdict(),
        "library": contender.library,
        "strategy": contender.name,
        "key": contender.key,
        "route": contender.route,
        "kind": contender.kind,
    }
    result = results_of(unit, request)[str(contender)]
    if result.reason is not None:
        request.config.stash[CANNOT_RUN].append(who | {"reason": result.reason})
        if contender.library in ("limit", "mtlweight"):
            pytest.fail(result.reason)
        pytest.skip(result.reason)
    benchmark.group = str(unit)
    benchmark.extra_info.update(who)
    benchmark.extra_info["shared_size"] = build_problem(unit.problem, unit.tasks).shared_size
    benchmark.extra_info["peak_bytes"] = result.peak_bytes
    for baseline, seconds in result.baselines.items():
        benchmark.extra_info[f"seconds_of_{baseline}"] = seconds
        benchmark.extra_info[f"ratio_to_{baseline}"] = result.ratio(baseline)
    replayed = iter(result.seconds)
    benchmark.pedantic(partial(CLOCK.move, replayed), rounds=len(result.seconds))
