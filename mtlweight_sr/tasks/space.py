"""A degradation space cut into tasks that are unions of boxes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from mtlweight_sr.degradation.boxes import intersections, uncovered
from mtlweight_sr.degradation.columns import COLUMNS, atom_edges
from mtlweight_sr.degradation.mixture import Space
from mtlweight_sr.degradation.parameters import DegradationParameters
from mtlweight_sr.degradation.sampling import draw_rows, parameters_from_cube
from mtlweight_sr.degradation.subspaces import Task, box_in_words
from mtlweight_sr.tasks.draws import TaskDraws, TaskIds, checked_task_ids

__all__ = ["TaskSpace"]


class TaskSpace(TaskDraws):
    """A partition of a degradation space into tasks.

    Args:
        space: The distribution.
        tasks: Disjoint tasks with different names; a task's id is its place.
        partial: Whether the tasks may leave part of the space out.

    Attributes:
        space: The distribution.
        tasks: The tasks.
        partial: Whether part of the space may belong to no task.
        names: Names of the tasks.
        masses: Natural probability of every task, exact; they sum to 1 unless `partial`.

    Raises:
        TypeError: Tasks that are no `Task`.
        ValueError: Repeated names, overlapping tasks, a cut through an atom of a discrete column
            (both sides would claim it), or tasks that do not fill the space without `partial`. The
            message names the tasks and the box they share, or the mass that is missing and a box of
            it.
    """

    def __init__(self, space: Space, tasks: Sequence[Task], *, partial: bool = False) -> None:
        tasks = _checked_tasks(tasks)
        _check_cuts(space, tasks)
        _check_disjoint(space, tasks)
        if not partial:
            _check_whole(space, tasks)
        self.space = space
        self.tasks = tasks
        self.partial = partial
        self.names = tuple(task.name for task in tasks)
        self.masses: Mapping[str, Fraction] = {task.name: task.mass for task in tasks}
        boxes = [(t, box) for t, task in enumerate(tasks) for box in task.boxes]
        self._box_task = torch.tensor([t for t, _ in boxes])
        low = torch.zeros(len(boxes), len(COLUMNS), dtype=torch.float64)
        high = torch.ones_like(low)
        for i, (_, box) in enumerate(boxes):
            for column, side in box.sides.items():
                low[i, COLUMNS.index(column)], high[i, COLUMNS.index(column)] = map(float, side)
        self._low, self._high = low, high
        # Cumulated shares of a task's boxes, each shifted by the task's id: one search finds the
        # box of every sample.
        self._last = torch.tensor(
            [t + float(done) for t, task in enumerate(tasks) for done in _shares(task)],
            dtype=torch.float64,
        )

    def draw(
        self, task_ids: TaskIds, ids: Sequence[int] | Tensor, seed: int, stream: int = 0
    ) -> DegradationParameters:
        """Parameters of samples of given tasks, each exactly from its task's conditional law.

        A row is a pure function of its task, its id, `seed` and `stream`: batch layout, workers and
        world size do not enter.

        Args:
            task_ids: The task of each sample, `[B]` places or names, or one for all samples.
            ids: Identity of each sample, `[B]`; the same id has the same row of the cube in every
                task.
            seed: Seed of the whole run, in [0, 2**64).
            stream: Keeps draws for different purposes apart, in [0, 2**32).

        Raises:
            TypeError: Tasks that are neither integers nor names; ids or a seed that are no whole
                numbers.
            ValueError: Unknown tasks, not one per id, or ids or a seed out of range.
        """
        cube, choice, seeds = draw_rows(ids, seed, stream)
        tasks = checked_task_ids(task_ids, self.names, len(seeds))
        box = torch.searchsorted(self._last, tasks + choice, right=True)
        # Adding the id rounds: a choice next to one must not fall into the next task.
        box = torch.minimum(box, torch.searchsorted(self._box_task, tasks, right=True) - 1)
        low, high = self._low[box], self._high[box]
        inside = torch.minimum(low + (high - low) * cube, torch.nextafter(high, low))
        return parameters_from_cube(self.space, inside, seeds)

    def assign(self, cube: Tensor | DegradationParameters) -> Tensor:
        """The task of each row, `[B]` int64; -1 where no task holds it.

        Args:
            cube: Rows of the cube, `[B, 38]` float64, or the parameters made from them.

        Raises:
            ValueError: A cube of another shape.
        """
        rows = cube.cube if isinstance(cube, DegradationParameters) else cube
        if rows.ndim != 2 or rows.shape[1] != len(COLUMNS):
            raise ValueError(
                f"expected `cube` of shape [B, {len(COLUMNS)}], got {list(rows.shape)}; write "
                "draw_cube(ids, seed)"
            )
        found = torch.full((len(rows),), -1, dtype=torch.long, device=rows.device)
        for task, low, high in zip(self._box_task.tolist(), self._low, self._high, strict=True):
            inside = (rows >= low.to(rows.device)) & (rows < high.to(rows.device))
            found[inside.all(1)] = task
        return found

    def describe(self) -> str:
        """The definition of every task in words, one line per task."""
        lines = []
        for task in self.tasks:
            boxes = " or ".join(box_in_words(self.space, box) for box in task.boxes)
            lines.append(f"{task.name} (p = {task.mass}): {task.definition or boxes}")
        return "\n".join(lines)


def _checked_tasks(tasks: Sequence[Task]) -> tuple[Task, ...]:
    if isinstance(tasks, Task) or not all(isinstance(task, Task) for task in tasks):
        raise TypeError(f"expected `tasks` as a sequence of Task, got {tasks!r}; write [task]")
    names = [task.name for task in tasks]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"expected `tasks` with different names, at least one, got {names}; rename them"
        )
    return tuple(tasks)


def _check_cuts(space: Space, tasks: Sequence[Task]) -> None:
    edges = atom_edges(space)
    for task in tasks:
        for box in task.boxes:
            for column, side in box.sides.items():
                if column in edges and not edges[column].issuperset(side):
                    raise ValueError(
                        f"expected cuts of the discrete column {column!r} between its values, "
                        f"at one of {', '.join(str(e) for e in sorted(edges[column]))}, got "
                        f"{side[0]} to {side[1]} in task {task.name!r}; write Task.from_ranges "
                        "with values"
                    )


def _check_disjoint(space: Space, tasks: Sequence[Task]) -> None:
    for a, b in itertools.combinations(tasks, 2):
        both = intersections(a.boxes, b.boxes)
        if both:
            shared = sum((box.volume for box in both), Fraction(0))
            raise ValueError(
                f"expected disjoint tasks, got {a.name!r} and {b.name!r}, which share a "
                f"probability of {shared}, among it {box_in_words(space, both[0])}; cut one of them"
            )


def _check_whole(space: Space, tasks: Sequence[Task]) -> None:
    missing = uncovered([box for task in tasks for box in task.boxes])
    if missing is not None:
        total = sum((task.mass for task in tasks), Fraction(0))
        raise ValueError(
            f"expected `tasks` that fill the space, got a total probability of {total} = "
            f"{float(total):.6g}: {1 - total} is in no task, among it "
            f"{box_in_words(space, missing)}; add the missing task or write partial=True"
        )


def _shares(task: Task) -> list[Fraction]:
    return [done / task.mass for done in itertools.accumulate(box.volume for box in task.boxes)]
