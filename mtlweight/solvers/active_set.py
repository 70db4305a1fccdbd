"""An active set method for convex functions of T numbers that must not be negative."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mtlweight.solvers.unit_rows import Vector

ACCURACY = 1e-10


def minimize(
    start: Vector,
    slopes: Callable[[Vector], tuple[Vector, float]],
    goal: Callable[[NDArray[np.intp]], Vector],
    problem: str,
) -> Vector:
    """Returns the x >= 0 at which a convex function is lowest, `[T]`.

    In turns, entries of zero at which the function falls are let in, and x goes straight towards
    the lowest point on the entries that are in; the first to reach zero on the way are put out. The
    function falls in every turn, so no choice of entries comes twice and the method ends: after a
    few turns where all that fall come in at once, and for sure where only the steepest does, which
    is what it changes to when that brought no progress.

    Args:
        start: A feasible x.
        slopes: Returns at x the derivative, less what constraints take of it: zero where x > 0 and
            not negative elsewhere at the solution, `[T]`; and the size of what it is a sum of.
        goal: Returns the lowest point with all but the given entries at zero, of any sign, `[n]`.
        problem: What is solved, for the error.

    Raises:
        RuntimeError: The slopes at the end are further from a solution's than 1e-10 of their size.
    """
    x = start
    alone = False
    for _ in range(50 + 10 * len(x)):
        y, size = slopes(x)
        falling = (y < -1e-13 * size) & (x <= 0)
        if not falling.any():
            break
        if alone:
            steepest = np.where(falling, y, np.inf).argmin()
            falling[:] = False
            falling[steepest] = True
        x, moved = _turn(x, ((x > 0) | falling).nonzero()[0], goal)
        if alone and not moved:
            break
        alone = not moved
    y, size = slopes(x)
    error = max(-y.min(), np.abs(y * (x > 0)).max()) / size
    if not error <= ACCURACY:
        raise RuntimeError(
            f"{problem} was not found: the slopes of {len(x)} tasks are {error} off."
        )
    return x


def level(x: Vector, slopes: Vector, prices: Vector) -> float:
    """Returns the slope per price that the entries x > 0 have in common at their lowest point.

    By least squares, in which the dearest count: no digits are lost on the cheap ones.
    """
    held = prices * (x > 0)
    return float(held @ slopes / (held @ held))


def _turn(
    x: Vector, index: NDArray[np.intp], goal: Callable[[NDArray[np.intp]], Vector]
) -> tuple[Vector, bool]:
    """Returns x with the given entries at their lowest, less those that left, and if it moved."""
    moved = False
    while len(index):
        here, there = x[index], goal(index)
        x = np.zeros_like(x)
        if there.min() > 0:
            x[index] = there
            return x, True
        steps = np.full_like(here, np.inf)
        leaving = there <= 0
        steps[leaving] = here[leaving] / np.maximum(here[leaving] - there[leaving], 1e-300)
        first = steps.min()
        left = steps <= first
        here = here + first * (there - here)
        here[left] = 0.0
        x[index] = here
        moved = moved or first > 0
        index = index[~left]
    return x, moved
