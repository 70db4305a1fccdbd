"""CPU time of steps taken in turns, and the peak of the memory that a step holds."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import quantiles

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.contenders import Contender, Step
from benchmarks.problems import Problem

WAVE = 6
MOST_ROUNDS = 300


class Clock:
    """A clock that is moved on by the times that were measured."""

    def __init__(self) -> None:
        self.now = 0.0

    def read(self) -> float:
        return self.now

    def move(self, seconds: Iterator[float]) -> None:
        self.now += next(seconds)


@dataclass
class Result:
    """What was measured of one contender.

    Attributes:
        seconds: CPU time of its steps, one a round.
        baselines: That of each limit in the same rounds.
        peak_bytes: The most memory that a step holds, with what it keeps from step to step, and
            without the network and its data.
        reason: Why it can't run, if it can't.
    """

    seconds: list[float] = field(default_factory=list)
    baselines: dict[str, list[float]] = field(default_factory=dict)
    peak_bytes: int | None = None
    reason: str | None = None

    def ratio(self, baseline: str) -> tuple[float, float, float]:
        """Returns the quartiles of its time over that of a limit in the same round."""
        ratios = [a / b for a, b in zip(self.seconds, self.baselines[baseline], strict=True)]
        low, median, high = (
            quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        )
        return low, median, high


def measure(
    problem: Problem,
    limits: Sequence[Contender],
    contenders: Sequence[Contender],
    min_rounds: int,
    max_time: float,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Result]:
    """Returns what was measured of each contender, by its text.

    They step in turns, in random order, together with the limits, in waves of a few at a time so
    that what they hold fits into memory; a strategy is in one wave with its peers.

    Args:
        problem: What to step on.
        limits: Their times are what ratios are taken of; may be among the contenders too.
        contenders: Who steps.
        min_rounds: The least number of rounds of each.
        max_time: Beyond them, the seconds that each may take.
        note: Told what goes on.
    """
    results = {str(contender): Result() for contender in contenders}
    for i, wave in enumerate(_waves(contenders)):
        note(f"{problem.name}, {len(problem.tasks)} tasks, wave {i}: {', '.join(map(str, wave))}")
        ready: dict[str, Step] = {}
        for contender in wave:
            name = str(contender)
            try:
                results[name].peak_bytes, ready[name] = peak_bytes(problem, contender.build)
            except Exception as error:
                results[name] = Result(reason=_reason(error))
        baselines = {limit.name: limit.build(problem) for limit in limits}
        _take_turns(ready, baselines, results, min_rounds, max_time)
    problem.clear()
    return results


def _waves(contenders: Sequence[Contender]) -> Iterator[list[Contender]]:
    wave: list[Contender] = []
    for key in dict.fromkeys(contender.key for contender in contenders):
        wave += [contender for contender in contenders if contender.key == key]
        if len(wave) >= WAVE:
            yield wave
            wave = []
    if wave:
        yield wave


def _take_turns(
    ready: dict[str, Step],
    baselines: dict[str, Step],
    results: dict[str, Result],
    min_rounds: int,
    max_time: float,
) -> None:
    order = random.Random(0)
    gc.collect()
    gc.freeze()
    gc.disable()  # one contender's garbage must not be swept in another's turn
    try:
        while ready:
            turns = [*ready.items(), *baselines.items()]
            order.shuffle(turns)
            taken: dict[str, float] = {}
            for name, step in turns:
                start = time.process_time()
                try:
                    step()
                except Exception as error:
                    results[name] = Result(reason=_reason(error))
                    del ready[name]
                    continue
                taken[name] = time.process_time() - start
            for name in list(ready):
                result = results[name]
                result.seconds.append(taken[name])
                for baseline in baselines:
                    result.baselines.setdefault(baseline, []).append(taken[baseline])
                rounds, spent = len(result.seconds), sum(result.seconds)
                if rounds >= min_rounds and (spent >= max_time or rounds >= MOST_ROUNDS):
                    del ready[name]
            gc.collect()
    finally:
        gc.enable()
        gc.unfreeze()


def peak_bytes(problem: Problem, build: Callable[[Problem], Step]) -> tuple[int, Step]:
    """Returns the most bytes of tensors that a contender holds during a step, and its step.

    Counted are those that torch allocates from the contender's construction on: state and
    workspaces that it keeps are in, the network and its data are not.
    """
    problem.clear()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step = build(problem)
        with record_function("the measured step"):
            step()
    recorded = profiler.profiler.kineto_results.events()
    (start,) = (e.start_ns() for e in recorded if e.name() == "the measured step")
    changes = sorted((e.start_ns(), e.nbytes()) for e in recorded if e.name() == "[memory]")
    held = peak = 0
    for when, change in changes:
        held += change
        if when >= start:
            peak = max(peak, held)
    problem.clear()
    return peak, step


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def set_up() -> None:
    """One thread, so that CPU time is the time of the step."""
    torch.set_num_threads(1)
