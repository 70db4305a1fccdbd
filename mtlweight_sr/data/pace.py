"""How fast training goes, and how much of its time it waits for data."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["Pace"]

Batch = TypeVar("Batch")


class Pace:
    """Watches a loop over batches.

    Time between asking for a batch and having it is waiting: what batches come from doesn't keep
    up. With an accelerator that is the host's time; of the step before, the accelerator may still
    have something left to do meanwhile.

    Attributes:
        steps: batches that were worked on to the end.
        waiting: seconds of waiting.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.waiting = 0.0
        self._started = self._ended = 0.0
        self._running = False

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yields the batches, and counts from now on."""
        self._started = asked = time.perf_counter()
        self._running = True
        try:
            for batch in batches:
                self.waiting += time.perf_counter() - asked
                yield batch
                self.steps += 1
                asked = time.perf_counter()
        finally:
            self._ended, self._running = time.perf_counter(), False

    @property
    def seconds(self) -> float:
        """From the first batch that was asked for to the end of the loop, or to now."""
        return (time.perf_counter() if self._running else self._ended) - self._started

    @property
    def waiting_share(self) -> float:
        """The share of waiting in that time."""
        return self.waiting / max(self.seconds, 1e-9)

    @property
    def steps_per_second(self) -> float:
        """Steps per second of that time, waiting included."""
        return self.steps / max(self.seconds, 1e-9)
