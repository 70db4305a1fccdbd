"""Boxes of the unit cube: where a parameter lies in a range.

A task is a finite union of disjoint boxes. Sides are fractions, so volumes are exact and totals are
compared with `==`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import TypeGuard

from mtlweight_sr.degradation.columns import COLUMNS, Branch, Sides, branches, value_names
from mtlweight_sr.degradation.mixture import Space
from mtlweight_sr.degradation.space import exact

__all__ = ["Box", "Wanted", "boxes_where", "intersections", "is_range", "merged", "uncovered"]

_WHOLE = (Fraction(0), Fraction(1))

Range = tuple[float | Fraction, float | Fraction]
Wanted = bool | int | float | str | Range | Collection[bool | int | float | str]
"""A range (low, high), one value, or a list or set of values."""


@dataclass(frozen=True, eq=False)
class Box:
    """An axis-aligned box of the cube, half-open: low <= v < high on every side.

    Attributes:
        sides: Column -> (low, high) with 0 <= low < high <= 1, as fractions, ints or floats (a
            float is read as the decimal it prints); columns left out span [0, 1).

    Raises:
        ValueError: An unknown column, or bounds that are no interval of [0, 1].
    """

    sides: Sides

    def __post_init__(self) -> None:
        sides = {}
        for column, (low, high) in self.sides.items():
            if column not in COLUMNS:
                raise ValueError(
                    f"expected a column of the cube in `sides`, got {column!r}; write one of "
                    f"{COLUMNS}"
                )
            side = exact(low), exact(high)
            if not 0 <= side[0] < side[1] <= 1:
                raise ValueError(
                    f"expected 0 <= low < high <= 1 for {column!r} in `sides`, got ({low}, "
                    f"{high}); write for example (0, 0.5)"
                )
            if side != _WHOLE:
                sides[column] = side
        object.__setattr__(self, "sides", MappingProxyType(sides))

    def __reduce__(self) -> tuple[type[Box], tuple[Sides]]:
        return Box, (dict(self.sides),)  # a view of a mapping can't be pickled

    @property
    def volume(self) -> Fraction:
        """Natural probability of the box."""
        return math.prod((high - low for low, high in self.sides.values()), start=Fraction(1))

    def intersect(self, other: Box) -> Box | None:
        """The box common to both, None where they share no volume."""
        sides = dict(self.sides)
        for column, (low, high) in other.sides.items():
            mine = sides.get(column, _WHOLE)
            both = max(low, mine[0]), min(high, mine[1])
            if both[0] >= both[1]:
                return None
            sides[column] = both
        return Box(sides)


def _join(a: Box, b: Box) -> Box | None:
    """The union of two boxes that touch along one column and agree on every other."""
    differ = [c for c in {*a.sides, *b.sides} if a.sides.get(c, _WHOLE) != b.sides.get(c, _WHOLE)]
    if len(differ) != 1:
        return None
    column = differ[0]
    (low, middle), (start, high) = sorted(
        (a.sides.get(column, _WHOLE), b.sides.get(column, _WHOLE))
    )
    return Box({**a.sides, column: (low, high)}) if middle == start else None


def merged(boxes: Iterable[Box]) -> tuple[Box, ...]:
    """The same union of disjoint boxes in fewer boxes, where neighbours can be joined."""
    done: list[Box] = []
    for box in boxes:
        while True:
            joined = next(((b, j) for b in done if (j := _join(b, box)) is not None), None)
            if joined is None:
                break
            done.remove(joined[0])
            box = joined[1]
        done.append(box)
    return tuple(done)


def intersections(first: Iterable[Box], second: Iterable[Box]) -> tuple[Box, ...]:
    """The boxes of the intersection of two unions of boxes."""
    others = tuple(second)
    pairs = (a.intersect(b) for a in first for b in others)
    return tuple(box for box in pairs if box is not None)


def _without(box: Box, hole: Box) -> list[Box]:
    """What is left of a box around another that meets it, as disjoint boxes."""
    rest, sides = [], dict(box.sides)
    for column, (low, high) in hole.sides.items():
        start, end = sides.get(column, _WHOLE)
        for part in ((start, low), (high, end)):
            if part[0] < part[1]:
                rest.append(Box({**sides, column: part}))
        sides[column] = max(start, low), min(end, high)
    return rest


def uncovered(boxes: Iterable[Box]) -> Box | None:
    """A box that none of some disjoint boxes touches; None where together they fill the cube."""
    region, inside = Box({}), list(boxes)
    if sum((box.volume for box in inside), Fraction(0)) == 1:
        return None
    while inside:
        # The boxes are disjoint: volumes tell which part of the rest is not filled.
        for part in _without(region, inside[0]):
            held = [both for box in inside if (both := box.intersect(part)) is not None]
            if sum((box.volume for box in held), Fraction(0)) < part.volume:
                region, inside = part, held
                break
    return region


def is_range(wanted: Wanted) -> TypeGuard[Range]:
    """Whether what is wanted is a range, a tuple of two numbers."""
    return (
        isinstance(wanted, tuple)
        and len(wanted) == 2
        and not any(isinstance(end, bool | str) for end in wanted)
    )


def _values(space: Space, name: str, wanted: Wanted) -> Range | set[float]:
    pieces = branches(space)[name]
    names = value_names(space, name)
    if names is None and is_range(wanted):
        low, high = wanted
        lowest, highest = min(p.low for p in pieces), max(p.high for p in pieces)
        if not lowest <= low <= high <= highest:
            raise ValueError(
                f"expected a range within ({lowest:g}, {highest:g}) for `{name}`, got "
                f"({low}, {high}); write for example {name}=({(lowest + highest) / 2:g}, "
                f"{highest:g})"
            )
        return low, high
    chosen: list[bool | int | float | str | Fraction] = (
        [wanted] if isinstance(wanted, str | bool | int | float) else list(wanted)
    )
    if any(piece.column for piece in pieces):
        low, high = pieces[0].low, pieces[0].high
        raise ValueError(
            f"expected a range for `{name}`, which is continuous, got {wanted!r}: a single value "
            f"has no probability; write for example {name}=({low:g}, {high:g})"
        )
    known: dict[bool | int | float | str | Fraction, float] = {
        (names[int(p.low)] if names else p.low): p.low for p in pieces
    }
    unknown = [value for value in chosen if value not in known]
    if unknown or not chosen:
        raise ValueError(
            f"expected values of `{name}` among {tuple(known)}, got {wanted!r}; write for example "
            f"{name}={next(iter(known))!r}"
        )
    return {known[value] for value in chosen}


def _part(piece: Branch, wanted: Range | set[float], top: float) -> Box | None:
    """Where one branch has a wanted value; `top` is the parameter's maximum."""
    if piece.column is None:
        if isinstance(wanted, set):
            inside = piece.low in wanted
        else:
            inside = wanted[0] <= piece.low and (piece.low < wanted[1] or wanted[1] >= top)
        return Box(piece.where) if inside else None
    assert isinstance(wanted, tuple)  # `_values` refuses sets for continuous parameters
    low, high = max(wanted[0], piece.low), min(wanted[1], piece.high)
    if low >= high:
        return None
    start, end = piece.where[piece.column]
    span = exact(piece.high) - exact(piece.low)
    at = [start + (end - start) * (exact(v) - exact(piece.low)) / span for v in (low, high)]
    return Box({**piece.where, piece.column: (at[0], at[1])})


def boxes_where(space: Space, name: str, wanted: Wanted) -> tuple[Box, ...]:
    """The boxes on which the parameter `name` has a wanted value, exactly, through its map.

    Args:
        space: The distribution.
        name: A parameter of `branches(space)`, for example "kernel_size_1", "noise_sigma_1" or
            "resize_scale_2".
        wanted: A range (low, high), one value, or a list or set of values. A range of a continuous
            parameter is low <= x < high, so that neighbouring ranges share nothing; a range of a
            discrete one includes both ends. A parameter that exists only for some choice
            (`noise_sigma_1`) holds the task to that choice.

    Returns:
        Disjoint boxes, merged where they touch.

    Raises:
        ValueError: An unknown parameter, a range outside the parameter's own, a value it never
            takes, or a range of probability zero.
    """
    known: Mapping[str, tuple[Branch, ...]] = branches(space)
    if not known.get(name):
        raise ValueError(
            f"expected a parameter of this space, got {name!r}; write one of "
            f"{tuple(n for n, pieces in known.items() if pieces)}"
        )
    values = _values(space, name, wanted)
    pieces = known[name]
    if isinstance(values, tuple) and not any(piece.column for piece in pieces):
        values = {p.low for p in pieces if values[0] <= p.low <= values[1]}
    top = max(piece.high for piece in pieces)
    parts = (_part(piece, values, top) for piece in pieces)
    boxes = merged(box for box in parts if box is not None)
    if not boxes:
        raise ValueError(
            f"expected a range of `{name}` with some probability, got {wanted!r}; widen it"
        )
    return boxes
