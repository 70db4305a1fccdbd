"""Tasks: named unions of boxes of the cube, written down as ranges of physical parameters."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

from mtlweight_sr.degradation.boxes import Box, Wanted, boxes_where, intersections, is_range, merged
from mtlweight_sr.degradation.columns import Sides, branches, component_sides, value_names
from mtlweight_sr.degradation.mixture import Mixture, Space

__all__ = ["Task", "box_in_words", "task_from_ranges"]


@dataclass(frozen=True, eq=False)
class Task:
    """A named union of disjoint boxes.

    Attributes:
        name: Its name.
        boxes: Its boxes.
        definition: It in words, for reports; made from the boxes where empty.

    Raises:
        ValueError: No name, no box, or boxes that overlap.
    """

    name: str
    boxes: tuple[Box, ...]
    definition: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "boxes", tuple(self.boxes))
        if not self.name or not self.boxes:
            raise ValueError(
                f"expected a task with a `name` and at least one box, got name {self.name!r} and "
                f"{len(self.boxes)} boxes; write Task('all', (Box({{}}),)) for the whole space"
            )
        for a, b in itertools.combinations(self.boxes, 2):
            if a.intersect(b) is not None:
                raise ValueError(
                    f"expected disjoint `boxes` in task {self.name!r}, got {dict(a.sides)} and "
                    f"{dict(b.sides)} that overlap; cut one of them"
                )

    @property
    def mass(self) -> Fraction:
        """Natural probability of the task."""
        return sum((box.volume for box in self.boxes), Fraction(0))

    @classmethod
    def from_ranges(cls, space: Space, name: str, /, **ranges: Wanted) -> Self:
        """The samples whose parameters all lie in the given ranges, in physical units.

        `Task.from_ranges(space, "noisy", kernel_size_1=(15, 21), noise_sigma_1=(15.5, 30),
        resize_mode_1="area")`. A range (low, high) of a continuous parameter is half-open, that of
        a discrete one includes both ends; a value, or a list of values, picks from a discrete
        parameter. Parameters are those of `boxes_where`.

        Raises:
            ValueError: No range, an unknown parameter, a range it never reaches, or ranges that
                exclude each other.
        """
        if not ranges:
            raise ValueError(
                f"expected at least one range for task {name!r}, got none; write for example "
                "noise_level_1=(0.5, 1)"
            )
        boxes: tuple[Box, ...] = (Box({}),)
        for parameter, wanted in ranges.items():
            boxes = intersections(boxes, boxes_where(space, parameter, wanted))
        if not boxes:
            raise ValueError(
                f"expected ranges with some probability together for task {name!r}, got {ranges}; "
                "they exclude each other: drop one"
            )
        words = ", ".join(_in_words(parameter, wanted) for parameter, wanted in ranges.items())
        return cls(name, merged(boxes), words)


def task_from_ranges(space: Space, name: str, /, **ranges: Wanted) -> Task:
    """The same as `Task.from_ranges`."""
    return Task.from_ranges(space, name, **ranges)


def _in_words(parameter: str, wanted: Wanted) -> str:
    if is_range(wanted):
        return f"{parameter} from {float(wanted[0]):g} to {float(wanted[1]):g}"
    return f"{parameter} = {wanted}"


def _side_in_words(space: Space, column: str, low: Fraction, high: Fraction) -> str:
    """One side of a box, in physical units where the column alone decides."""
    pieces = branches(space).get(column, ())
    if all(p.column is None and set(p.where) == {column} for p in pieces) and pieces:
        values = [p.low for p in pieces if low <= p.where[column][0] < high]
        names = value_names(space, column)
        return f"{column} in {{{', '.join(names[int(v)] if names else f'{v:g}' for v in values)}}}"
    if len(pieces) == 1 and set(pieces[0].where) == {column} and pieces[0].column == column:
        piece = pieces[0]
        ends = (piece.low + (piece.high - piece.low) * float(v) for v in (low, high))
        return f"{column} in [{', '.join(f'{v:g}' for v in ends)})"
    return f"{column} in the quantiles [{low}, {high})"


def _in_component(box: Box, sides: Sides) -> Box | None:
    """What a box of a mixture is in the cube of one component; None where it has no part there."""
    ((column, (start, end)),) = sides.items()
    inside = box.intersect(Box(sides))
    if inside is None:
        return None
    low, high = inside.sides.get(column, (Fraction(0), Fraction(1)))
    part = ((low - start) / (end - start), (high - start) / (end - start))
    return Box({**inside.sides, column: part})


def box_in_words(space: Space, box: Box) -> str:
    """A box as a sentence."""
    if isinstance(space, Mixture):
        parts = [
            (part.name, box_in_words(part.space, inside))
            for part, sides in zip(space.components, component_sides(space), strict=True)
            if (inside := _in_component(box, sides)) is not None
        ]
        if len(parts) < len(space.components) or len({words for _, words in parts}) > 1:
            return " or ".join(f"{name}: {words}" for name, words in parts)
        return parts[0][1]
    sides = (_side_in_words(space, column, *side) for column, side in box.sides.items())
    return " and ".join(sides) or "everything"
