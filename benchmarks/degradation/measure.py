"""Calls taken in turns and timed: CPU time of one thread, or time between events on a GPU."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping

import torch
from torch.profiler import ProfilerActivity, profile

Call = Callable[[int], object]
"""One turn; its argument counts the rounds, so that each may have other images and parameters."""


def timed(call: Call, turn: int, device: torch.device) -> float:
    """Returns the seconds that a call takes."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        call(turn)
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3
    before = time.process_time()
    call(turn)
    return time.process_time() - before


def take_turns(
    calls: Mapping[str, Call], rounds: Mapping[str, int], device: torch.device
) -> dict[str, list[float]]:
    """Returns the seconds of each call, one a round, in random order within a round.

    Args:
        calls: What is timed, warmed up.
        rounds: How often each; those with fewer leave early.
        device: Where they run.
    """
    order = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    gc.disable()  # one's garbage must not be swept in another's turn
    try:
        for turn in range(max(rounds.values())):
            names = [name for name in calls if turn < rounds[name]]
            order.shuffle(names)
            for name in names:
                seconds[name].append(timed(calls[name], turn, device))
            gc.collect()
    finally:
        gc.enable()
    return seconds


def peak_bytes(call: Call, device: torch.device) -> int:
    """Returns the most bytes of tensors that a call holds beyond what was there before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call(0)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call(0)
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak
