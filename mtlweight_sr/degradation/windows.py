r"""The matrices of many resizes at once, from windows that the host computes.

An output sample of a resize without antialiasing reads a few neighbouring inputs: a bin (area), two
(bilinear) or four (bicubic). The host knows every one of them beforehand; it sends their places and
weights as one table, which an accelerator scatters into zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlweight_sr.degradation.precision import sent
from mtlweight_sr.degradation.space import MODES

__all__ = ["matrices"]

_Integers = NDArray[np.int64]
_Reals = NDArray[np.float64]


def _bins(
    at: _Integers, size: _Integers, target: _Integers, start: _Integers
) -> tuple[_Integers, _Reals]:
    # By integers: in floating point an end could fall on the wrong side.
    first = at * size // target
    count = -(-(at + 1) * size // target) - first
    places = (start + first - count.cumsum() + count).repeat(count)
    places += np.arange(len(places))
    return places, (1 / count).repeat(count)


def _linear_weights(past: _Reals) -> list[_Reals]:
    """Of the sample before a place, by how far the place is past it, and of the one after."""
    return [1 - past, past]


def _cubic_weights(past: _Reals) -> list[_Reals]:
    """Keys' kernel with a = -0.75: of the two samples before a place and the two after."""
    left = 1 - past
    square = past * left * 0.75
    outer, far = -square * left, -square * past
    inner = 1 + past * past * (1.25 * past - 2.25)
    return [outer, inner, 1 - inner - outer - far, far]


def _neighbours(
    at: _Integers, size: _Integers, step: _Reals, start: _Integers, *, cubic: bool
) -> tuple[_Integers, _Reals]:
    # torch rounds the step to float32 and computes with it in one rounding: so does float64 here.
    centre = ((at + 0.5) * step - 0.5).astype(np.float32).astype(np.float64)
    if not cubic:
        centre = np.minimum(np.maximum(centre, 0), size - 1)
    below = np.floor(centre)
    weights = np.stack((_cubic_weights if cubic else _linear_weights)(centre - below))
    taps = len(weights)
    window = np.arange(taps)[:, None]
    first = below.astype(np.int64) - int(cubic)
    # Neighbours outside count for the first or last sample: their weights are added up there.
    border = np.flatnonzero((first < 0) | (first + taps > size))
    if len(border):
        last = size[border] - 1
        moved = np.clip(first[border], 0, np.maximum(last + 1 - taps, 0))
        inside = np.minimum(np.maximum(first[border] + window, 0), last) - moved
        added = np.zeros((taps, len(border)))
        np.add.at(added, (inside, np.arange(len(border))), weights[:, border])
        weights[:, border] = added
        first[border] = moved
        if (last + 1 < taps).any():  # a line shorter than the window
            within = window < size - first
            return (start + first + window)[within], weights[within]
    return (start + first + window).ravel(), weights.ravel()


def _table(
    size: _Integers,
    target: _Integers,
    step: _Reals,
    mode: _Integers,
    start: _Integers,
    inputs: _Integers,
) -> NDArray[np.uint8]:
    """Places in memory as int64 and after them weights as float32, in bytes."""
    parts = []
    for number, name in enumerate(MODES):
        lines = np.flatnonzero(mode == number)
        if not len(lines):
            continue
        count = target[lines]
        line = lines.repeat(count)
        at = np.arange(len(line)) - (count.cumsum() - count).repeat(count)
        begin = start[line] + at * inputs[line]
        if name == "area":
            parts.append(_bins(at, size[line], target[line], begin))
        else:
            cubic = name == "bicubic"
            parts.append(_neighbours(at, size[line], step[line], begin, cubic=cubic))
    entries = sum(len(places) for places, _ in parts)
    table = np.empty(12 * entries, np.uint8)
    np.concatenate([places for places, _ in parts], out=table[: 8 * entries].view(np.int64))
    np.concatenate(
        [weights for _, weights in parts],
        out=table[8 * entries :].view(np.float32),
        casting="same_kind",
    )
    return table


def matrices(
    sizes: Sequence[tuple[int, int]],
    targets: Sequence[tuple[int, int]],
    steps: Sequence[tuple[float, float]],
    modes: Sequence[int],
    canvas: tuple[int, int],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Matrices `[B, H', H]` and `[B, W', W]` that resize along the two axes, zero outside.

    Args:
        sizes: Height and width of each image.
        targets: Those to reach; H' and W' are the largest.
        steps: Between samples, along the two axes.
        modes: Places in `MODES`.
        canvas: H and W.
        device: Where the matrices are needed; it is not waited for.
    """
    batch = len(sizes)
    size, target = (np.array(x, np.int64).T for x in (sizes, targets))
    step = np.array(steps, np.float32).astype(np.float64).T
    outputs = target.max(1)
    inputs = np.array(canvas, np.int64)
    area = outputs * inputs
    start = np.array([[0], [batch * area[0]]]) + np.arange(batch) * area[:, None]
    table = torch.from_numpy(
        _table(
            size.ravel(),
            target.ravel(),
            step.ravel(),
            np.tile(np.array(modes, np.int64), 2),
            start.ravel(),
            inputs.repeat(batch),
        )
    )
    split = len(table) // 12 * 8
    table = sent(table, device)
    both = torch.zeros(batch * int(area.sum()), dtype=torch.float32, device=device)
    both.scatter_(0, table[:split].view(torch.int64), table[split:].view(torch.float32))
    split = batch * int(area[0])
    return both[:split].view(batch, -1, canvas[0]), both[split:].view(batch, -1, canvas[1])
