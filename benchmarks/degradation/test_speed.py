"""One benchmark for each contender on each operator and on the whole; they are measured in turns.

As in `benchmarks.test_step_time`, the first test of a unit measures all of its contenders in turns,
together with the machine's speeds, and each test replays its own times.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean, median
from typing import Any

import pytest
import torch

from benchmarks.conftest import CANNOT_RUN, selected
from benchmarks.degradation import floors
from benchmarks.degradation.contenders import Contender, contenders, work
from benchmarks.degradation.measure import peak_bytes, take_turns
from benchmarks.degradation.peer import why_not
from benchmarks.degradation.units import UNITS, Unit
from benchmarks.measure import Clock


@dataclass(frozen=True)
class Case:
    unit: Unit
    contender: Contender

    def __str__(self) -> str:
        return f"{self.unit}-{self.contender}"


@dataclass(frozen=True)
class Result:
    """What was measured of a contender.

    Attributes:
        seconds: Of a batch, one a round.
        peak_bytes: What it holds at once beyond its arguments.
        floor: The least time of the batch, by the speeds of the same rounds.
    """

    seconds: list[float]
    peak_bytes: int
    floor: float | None


CASES = [Case(unit, contender) for unit in UNITS for contender in contenders(unit)]
CLOCK = Clock()
_latest: dict[Unit, dict[str, Result]] = {}


def measured(unit: Unit, chosen: list[Contender]) -> dict[str, Result]:
    """Returns the results of a unit's contenders, by their text."""
    if unit not in _latest:
        _latest.clear()
        device = torch.device(unit.device)
        calls, peaks = {}, {}
        with torch.no_grad():
            for contender in chosen:
                calls[str(contender)] = call = contender.build(unit)
                peaks[str(contender)] = peak_bytes(call, device)
            speeds = {f"limit:{name}": call for name, call in floors.limits(device).items()}
            for call in speeds.values():
                call(0)
            rounds = {str(contender): contender.rounds(unit) for contender in chosen}
            seconds = take_turns(
                calls | speeds, rounds | dict.fromkeys(speeds, max(5, unit.rounds)), device
            )
        speed = {
            name: amount / median(seconds[f"limit:{name}"])
            for name, amount in floors.AMOUNTS.items()
        }
        least = work(unit)
        floor = None if least is None else least.seconds(speed)
        _latest[unit] = {name: Result(seconds[name], peaks[name], floor) for name in calls}
    return _latest[unit]


@pytest.mark.benchmark(timer=CLOCK.read)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_degradation(case: Case, benchmark: Any, request: pytest.FixtureRequest) -> None:
    unit, contender = case.unit, case.contender
    who = asdict(unit) | {"library": contender.library, "route": contender.route}
    reason = refused(unit, contender)
    if reason is not None:
        request.config.stash[CANNOT_RUN].append(who | {"reason": reason})
        pytest.skip(reason)
    chosen = [
        other.contender
        for other in selected(request, Case)
        if other.unit == unit and refused(unit, other.contender) is None
    ]
    result = measured(unit, chosen)[str(contender)]
    benchmark.group = str(unit)
    benchmark.extra_info.update(who)
    benchmark.extra_info["whole"] = unit.whole
    benchmark.extra_info["per_sample"] = _typical(unit, result.seconds) / unit.batch
    benchmark.extra_info["peak_of_batch"] = result.peak_bytes / (unit.batch * 3 * unit.size**2 * 4)
    if result.floor is not None:
        benchmark.extra_info["floor"] = result.floor / unit.batch
    benchmark.pedantic(partial(CLOCK.move, iter(result.seconds)), rounds=len(result.seconds))


def _typical(unit: Unit, seconds: list[float]) -> float:
    """The mean over rounds where they differ in what they do, the median where they don't."""
    return fmean(seconds) if unit.whole else median(seconds)


def refused(unit: Unit, contender: Contender) -> str | None:
    """Returns why a contender can't run in a unit, None if it can."""
    if unit.on_gpu and not torch.cuda.is_available():
        return "there is no GPU"
    if contender.library == "BasicSR":
        return why_not()
    return None
