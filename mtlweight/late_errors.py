"""Errors of an accelerator's steps, raised when the device has them ready: no step waits for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class _Watch:
    step: int
    good: Tensor
    values: Tensor
    describe: Callable[[Tensor], str]
    copied: torch.cuda.Event | None


class LateErrors:
    """Flags that steps left on the device, each read once its copy has arrived on the host."""

    def __init__(self) -> None:
        self._watches: deque[_Watch] = deque()

    def watch(
        self, step: int, good: Tensor, values: Tensor, describe: Callable[[Tensor], str]
    ) -> None:
        """Remembers a step's flag; `describe` makes the message out of the step's values `[n]`."""
        if good.is_meta:
            return  # no values, so none to be bad
        copied = None
        if good.is_cuda:
            host = torch.empty_like(good, device="cpu", pin_memory=True)
            good = host.copy_(good, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        self._watches.append(_Watch(step, good, values, describe, copied))

    def raise_ready(self) -> None:
        """Raises the error of the first bad step among those that have arrived.

        Raises:
            ValueError: Names the step, the task and the value.
        """
        while self._watches:
            copied = self._watches[0].copied
            if copied is not None and not copied.query():  # type: ignore[no-untyped-call]
                return
            self._read(self._watches.popleft())

    def raise_all(self) -> None:
        """Waits for all steps, and raises the error of the first bad one."""
        while self._watches:
            watch = self._watches.popleft()
            if watch.copied is not None:
                watch.copied.synchronize()
            self._read(watch)

    def clear(self) -> None:
        """Forgets the steps so far."""
        self._watches.clear()

    def _read(self, watch: _Watch) -> None:
        if not watch.good:
            self.clear()
            raise ValueError(f"In step {watch.step}: {watch.describe(watch.values)}")

    def __reduce__(self) -> tuple[type[LateErrors], tuple[()]]:
        return LateErrors, ()
