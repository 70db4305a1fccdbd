"""What surrounds a training loop: signals, deterministic kernels, TensorBoard."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch

__all__ = ["Board", "deterministic", "ignore_interrupts", "interruptible", "tensorboard"]


@contextmanager
def interruptible(stop: Callable[[], None]) -> Iterator[None]:
    """Turns the first SIGINT or SIGTERM into a call of `stop`; a second one acts as before.

    Only the main thread may set handlers; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: object) -> None:
        restore()
        stop()

    for number in numbers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()


def ignore_interrupts(worker: int) -> None:
    """Has a worker process of a loader go on after Ctrl-C, until its parent ends it.

    Ctrl-C reaches every process of the terminal, and the batch at hand is still needed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Has cuDNN choose the same algorithms in every run; the CPU needs nothing."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield


class Board(Protocol):
    """What is used of TensorBoard's writer."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Writes a number."""


class _NoBoard:
    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        pass


@contextmanager
def tensorboard(folder: Path, step: int, wanted: bool) -> Iterator[Board]:
    """Opens TensorBoard's files in `folder`, without what was written after `step`."""
    if not wanted:
        yield _NoBoard()
        return
    # Here, not at the top: the import takes a second, and runs without it do not need it.
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(folder, purge_step=step + 1 if step else None)
    try:
        yield writer
    finally:
        writer.close()
