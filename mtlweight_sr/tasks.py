r"""Tasks as parts of the degradation space.

A task is a union of axis-aligned boxes of the unit cube behind the degradations. Its natural probability is the exact sum
of the boxes' volumes; drawing inside it maps the uniforms of the cut columns affinely into a box, which is the exact
conditional law and rejects nothing. Hence

$$\sum_t p_t\,P(\cdot\mid A_t)=P,$$

the mixture of the tasks at their natural probabilities is the original distribution. The same id draws the same row of
the cube for every task, so that tasks can be compared sample by sample (common random numbers).

Papers print no thresholds of their tasks: every preset below is ours, and `describe` says what it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Self

import torch
from torch import Tensor

from .degradation.boxes import Box, Wanted, boxes_where, intersections, merged
from .degradation.columns import COLUMNS, NAMES, atom_edges, branches
from .degradation.parameters import DegradationParameters
from .degradation.sampling import draw_rows, parameters_from_cube
from .degradation.space import REALESRGAN_X2, REALESRGAN_X4, DegradationSpace, exact
from .degradation.strength import effective_blur, effective_noise

__all__ = [
    "PRESETS",
    "Box",
    "ScoreTaskSpace",
    "Task",
    "TaskSpace",
    "equal_mass",
    "grid",
    "preset",
    "task_from_ranges",
]


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
                    f"expected disjoint `boxes` in task {self.name!r}, got {dict(a.sides)} and {dict(b.sides)} that "
                    "overlap; cut one of them"
                )

    @property
    def mass(self) -> Fraction:
        """Natural probability of the task."""
        return sum((box.volume for box in self.boxes), Fraction(0))

    @classmethod
    def from_ranges(cls, space: DegradationSpace, name: str, /, **ranges: Wanted) -> Self:
        """The samples whose parameters all lie in the given ranges, in physical units.

        `Task.from_ranges(space, "noisy", kernel_size_1=(15, 21), noise_sigma_1=(15.5, 30), resize_mode_1="area")`.
        A range (low, high) of a continuous parameter is half-open, that of a discrete one includes both ends; a value, or
        a list of values, picks from a discrete parameter. Parameters are those of `boxes_where`.

        Raises:
            ValueError: No range, an unknown parameter, a range it never reaches, or ranges that exclude each other.
        """
        if not ranges:
            raise ValueError(
                f"expected at least one range for task {name!r}, got none; write for example noise_level_1=(0.5, 1)"
            )
        boxes: tuple[Box, ...] = (Box({}),)
        for parameter, wanted in ranges.items():
            boxes = intersections(boxes, boxes_where(space, parameter, wanted))
        if not boxes:
            raise ValueError(
                f"expected ranges with some probability together for task {name!r}, got {ranges}; they exclude "
                "each other: drop one"
            )
        words = ", ".join(_in_words(parameter, wanted) for parameter, wanted in ranges.items())
        return cls(name, merged(boxes), words)


def task_from_ranges(space: DegradationSpace, name: str, /, **ranges: Wanted) -> Task:
    """The same as `Task.from_ranges`."""
    return Task.from_ranges(space, name, **ranges)


def _in_words(parameter: str, wanted: Wanted) -> str:
    if isinstance(wanted, tuple):
        return f"{parameter} from {wanted[0]:g} to {wanted[1]:g}"
    return f"{parameter} = {wanted}"


def _side_in_words(space: DegradationSpace, column: str, low: Fraction, high: Fraction) -> str:
    """One side of a box, in physical units where the column alone decides."""
    pieces = branches(space).get(column, ())
    if all(p.column is None and set(p.where) == {column} for p in pieces) and pieces:
        values = [p.low for p in pieces if low <= p.where[column][0] < high]
        names = NAMES.get(column)
        return f"{column} in {{{', '.join(names[int(v)] if names else f'{v:g}' for v in values)}}}"
    if len(pieces) == 1 and set(pieces[0].where) == {column} and pieces[0].column == column:
        piece = pieces[0]
        ends = (piece.low + (piece.high - piece.low) * float(v) for v in (low, high))
        return f"{column} in [{', '.join(f'{v:g}' for v in ends)})"
    return f"{column} in the quantiles [{low}, {high})"


class TaskSpace:
    """A partition of a degradation space into tasks.

    Args:
        space: The distribution.
        tasks: Disjoint tasks with different names; a task's id is its place.
        partial: Whether the tasks may leave part of the space out.

    Raises:
        ValueError: Repeated names, overlapping tasks, a cut through an atom of a discrete column (both sides would claim
            it), or tasks that do not fill the space without `partial`.
    """

    def __init__(
        self, space: DegradationSpace, tasks: Sequence[Task], *, partial: bool = False
    ) -> None:
        names = [task.name for task in tasks]
        if not names or len(set(names)) < len(names):
            raise ValueError(
                f"expected `tasks` with different names, at least one, got {names}; rename them"
            )
        edges = atom_edges(space)
        for task in tasks:
            for box in task.boxes:
                for column, side in box.sides.items():
                    if column in edges and not edges[column].issuperset(side):
                        raise ValueError(
                            f"expected cuts of the discrete column {column!r} between its values, at one of "
                            f"{', '.join(str(e) for e in sorted(edges[column]))}, got {side[0]} to {side[1]} in task "
                            f"{task.name!r}; write Task.from_ranges with values"
                        )
        for a, b in itertools.combinations(tasks, 2):
            both = next(iter(intersections(a.boxes, b.boxes)), None)
            if both is not None:
                raise ValueError(
                    f"expected disjoint tasks, got {a.name!r} and {b.name!r}, which share {dict(both.sides)}; "
                    "cut one of them"
                )
        total = sum((task.mass for task in tasks), Fraction(0))
        if total != 1 and not partial:
            raise ValueError(
                f"expected `tasks` that fill the space, got a total probability of {total} = {float(total):.6g}; add the "
                "missing task or write partial=True"
            )
        self.space = space
        self.tasks = tuple(tasks)
        self.partial = partial
        boxes = [(t, box) for t, task in enumerate(tasks) for box in task.boxes]
        self._box_task = torch.tensor([t for t, _ in boxes])
        low = torch.zeros(len(boxes), len(COLUMNS), dtype=torch.float64)
        high = torch.ones_like(low)
        for i, (_, box) in enumerate(boxes):
            for column, side in box.sides.items():
                low[i, COLUMNS.index(column)], high[i, COLUMNS.index(column)] = map(float, side)
        self._low, self._high = low, high
        # Cumulated shares of a task's boxes, each shifted by the task's id: one search finds the box of every sample.
        self._last = torch.tensor(
            [t + float(done) for t, task in enumerate(tasks) for done in _shares(task)],
            dtype=torch.float64,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tasks; a task's id is its place."""
        return tuple(task.name for task in self.tasks)

    @property
    def masses(self) -> dict[str, Fraction]:
        """Natural probability of every task, exact."""
        return {task.name: task.mass for task in self.tasks}

    def draw(
        self, task_ids: Tensor, ids: Sequence[int] | Tensor, seed: int, stream: int = 0
    ) -> DegradationParameters:
        """Parameters of samples of given tasks, exactly from the conditional law of each task.

        Args:
            task_ids: Task of each sample, `[B]` integers.
            ids: Identity of each sample, `[B]`; the same id has the same row of the cube in every task.
            seed: Seed of the whole run.
            stream: Keeps draws for different purposes apart.

        Raises:
            TypeError: Task ids that are no integers.
            ValueError: Task ids out of range, or not one per id.
        """
        cube, choice, seeds = draw_rows(ids, seed, stream)
        task_ids = _checked(task_ids, len(self.tasks), len(seeds))
        box = torch.searchsorted(self._last, task_ids + choice, right=True)
        # Adding the id rounds: a choice next to one must not fall into the next task.
        box = torch.minimum(box, torch.searchsorted(self._box_task, task_ids, right=True) - 1)
        low, high = self._low[box], self._high[box]
        inside = torch.where((low == 0) & (high == 1), cube, low + (high - low) * cube)
        inside = torch.minimum(inside, torch.nextafter(high, low))
        return parameters_from_cube(self.space, inside, seeds)

    def draw_natural(
        self, ids: Sequence[int] | Tensor, seed: int, stream: int = 0
    ) -> DegradationParameters:
        """Parameters from the whole space, tasks or not; `assign` tells the task of each row."""
        cube, _, seeds = draw_rows(ids, seed, stream)
        return parameters_from_cube(self.space, cube, seeds)

    def assign(self, cube: Tensor | DegradationParameters) -> Tensor:
        """The task of each row, `[B]` int64; -1 where no task holds it.

        Args:
            cube: Rows of the cube, `[B, 38]` float64, or the parameters made from them.
        """
        rows = cube.cube if isinstance(cube, DegradationParameters) else cube
        found = torch.full((len(rows),), -1, dtype=torch.long, device=rows.device)
        for task, low, high in zip(self._box_task.tolist(), self._low, self._high, strict=True):
            inside = (rows >= low.to(rows.device)) & (rows < high.to(rows.device))
            found[inside.all(1)] = task
        return found

    def describe(self) -> str:
        """The definition of every task in words, with its natural probability; one line per task."""
        lines = []
        for task in self.tasks:
            boxes = " or ".join(
                " and ".join(_side_in_words(self.space, c, *side) for c, side in box.sides.items())
                or "everything"
                for box in task.boxes
            )
            lines.append(f"{task.name} (p = {task.mass}): {task.definition or boxes}")
        return "\n".join(lines)


def _shares(task: Task) -> list[Fraction]:
    return [done / task.mass for done in itertools.accumulate(box.volume for box in task.boxes)]


def _checked(task_ids: Tensor, tasks: int, samples: int) -> Tensor:
    if task_ids.is_floating_point() or task_ids.is_complex() or task_ids.dtype == torch.bool:
        raise TypeError(
            f"expected `task_ids` of integers, got {task_ids.dtype}; write task_ids.long()"
        )
    task_ids = task_ids.cpu().long()
    if task_ids.shape != (samples,):
        raise ValueError(
            f"expected one of `task_ids` per id, got shape {list(task_ids.shape)} for {samples} ids; write "
            f"torch.full(({samples},), task)"
        )
    if samples and not (0 <= int(task_ids.min()) and int(task_ids.max()) < tasks):
        raise ValueError(
            f"expected `task_ids` in [0, {tasks}), got {int(task_ids.min())} to {int(task_ids.max())}; "
            "write places in `names`"
        )
    return task_ids
