"""What an accelerator needs to compute as exactly as a CPU, and without waiting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate

import torch
from torch import Tensor

__all__ = ["full_precision", "sent", "sent_together"]


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products in float32 proper: bfloat16 and TF32 would lose levels of 1/255.

    Autocast and TF32 are switched off for the device, and set as they were at the end.
    """
    with ExitStack() as stack:
        kind = device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            stack.enter_context(torch.autocast(kind, enabled=False))
        if kind == "cuda":
            stack.enter_context(_without_tf32())
        yield


@contextmanager
def _without_tf32() -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    # The older of the two switches refuses to be read once the newer one has been used.
    newer = hasattr(matmul, "fp32_precision")
    switch, exact = ("fp32_precision", "ieee") if newer else ("allow_tf32", False)
    before = getattr(matmul, switch)
    setattr(matmul, switch, exact)
    try:
        yield
    finally:
        setattr(matmul, switch, before)


def sent(table: Tensor, device: torch.device) -> Tensor:
    """A small table of the host on a device, without waiting for the device."""
    if device.type == "cuda" and table.device.type == "cpu":
        table = table.pin_memory()
    return table.to(device, non_blocking=True)


def sent_together(tables: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Several tables of the host on a device, in one copy."""
    lengths = [table.numel() * table.element_size() for table in tables]
    # Each begins where its type may begin.
    starts = [0, *accumulate(length + -length % 8 for length in lengths)]
    packed = torch.zeros(starts[-1], dtype=torch.uint8)
    for table, start, length in zip(tables, starts, lengths, strict=False):
        packed[start : start + length].view(table.dtype).copy_(table.reshape(-1))
    packed = sent(packed, device)
    return [
        packed[start : start + length].view(table.dtype).view(table.shape)
        for table, start, length in zip(tables, starts, lengths, strict=False)
    ]
