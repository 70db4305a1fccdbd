r"""What every output sample of a resize reads, as the host computes it.

An output sample of a resize without antialiasing reads a few neighbouring inputs: a bin (area), two
(bilinear) or four (bicubic). The host knows every one of them beforehand. A CPU adds them up as
they are; for an accelerator their places and weights are sent as one table, which it scatters into
the zeros of matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlweight_sr.degradation.precision import sent
from mtlweight_sr.degradation.space import MODES

__all__ = ["matrices", "windows"]

_Integers = NDArray[np.int64]
_Reals = NDArray[np.float64]

# Keys' kernel with a = -0.75, by powers of how far a place is past the second of its four samples.
_CUBIC = np.array(
    [[0, 1, 0, 0], [-0.75, 0, 0.75, 0], [1.5, -2.25, 1.5, -0.75], [-0.75, 1.25, -1.25, 0.75]]
)


def _bins(
    at: _Integers, size: _Integers | int, target: _Integers | int
) -> tuple[_Integers, _Reals]:
    # By integers: in floating point an end could fall on the wrong side.
    first = at * size // target
    count = (at * size + (size - 1)) // target + 1 - first
    return first, (np.arange(count.max()) < count[:, None]) / count[:, None]


def _neighbours(
    at: _Integers, size: _Integers | int, step: _Reals | float, *, cubic: bool
) -> tuple[_Integers, _Reals]:
    # torch rounds the step to float32 and computes with it in one rounding: so does float64 here.
    centre = ((at + 0.5) * step - 0.5).astype(np.float32).astype(np.float64)
    if not cubic:
        centre = np.minimum(np.maximum(centre, 0), size - 1)
    below = np.floor(centre)
    past = centre - below
    first = below.astype(np.int64)
    if not cubic:
        return first, np.stack((1 - past, past), 1)
    square = past * past
    return first - 1, np.stack((np.ones_like(past), past, square, square * past), 1) @ _CUBIC


def _windows(
    mode: str,
    at: _Integers,
    size: _Integers | int,
    target: _Integers | int,
    step: _Reals | float,
) -> tuple[_Integers, _Reals]:
    """The first input of every output `[N]`; the weights of it and the next ones `[N, taps]`.

    A window may begin before its line and end after it, and narrow bins end with zeros.
    """
    if mode == "area":
        return _bins(at, size, target)
    return _neighbours(at, size, step, cubic=mode == "bicubic")


# The two axes of a square ask for the same.
@lru_cache(maxsize=4)
def windows(mode: str, size: int, target: int, step: float) -> tuple[_Integers, _Reals]:
    """Windows of one line.

    Args:
        mode: One of `MODES`.
        size: Inputs of the line.
        target: Outputs.
        step: Between them.

    Returns:
        Places of inputs and their weights, `[target, taps]` each. Places never fall; one that is
        named twice counts twice.
    """
    first, weights = _windows(mode, np.arange(target), size, target, float(np.float32(step)))
    places = first[:, None] + np.arange(weights.shape[1])
    return np.minimum(np.maximum(places, 0, out=places), size - 1, out=places), weights


def _within(first: _Integers, weights: _Reals, size: _Integers) -> tuple[_Integers, _Reals]:
    """Windows moved into their lines; what was outside counts for the first or last input."""
    taps = weights.shape[1]
    border = np.flatnonzero((first < 0) | (first + taps > size))
    before, last = first[border], size[border] - 1
    first[border] = moved = np.minimum(np.maximum(before, 0), np.maximum(last + 1 - taps, 0))
    outside, weights[border] = weights[border], 0
    for tap in range(taps):
        inside = np.minimum(np.maximum(before + tap, 0), last) - moved
        weights[border, inside] += outside[:, tap]
    return first, weights


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
        first, weights = _windows(name, at, size[line], target[line], step[line])
        first, weights = _within(first, weights, size[line])
        window = np.arange(weights.shape[1])
        places = (start[line] + at * inputs[line] + first)[:, None] + window
        if name == "area" or (size[lines] < len(window)).any():
            within = weights != 0  # of shorter bins and lines
            places, weights = places[within], weights[within]
        parts.append((places.ravel(), weights.ravel()))
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
