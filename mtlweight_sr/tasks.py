r"""Tasks as parts of the degradation space.

A task is a union of axis-aligned boxes of the unit cube behind the degradations. Its natural
probability is the exact sum of the boxes' volumes; drawing inside it maps the uniforms of the cut
columns affinely into a box, which is the exact conditional law and rejects nothing. Hence

$$\sum_t p_t\,P(\cdot\mid A_t)=P,$$

the mixture of the tasks at their natural probabilities is the original distribution. The same id
draws the same row of the cube for every task, so that tasks can be compared sample by sample
(common random numbers).

Papers print no thresholds of their tasks: every preset below is ours, and `describe` says what it
is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from mtlweight_sr.degradation.boxes import Box, boxes_where, intersections, merged
from mtlweight_sr.degradation.columns import COLUMNS, atom_edges
from mtlweight_sr.degradation.parameters import DegradationParameters
from mtlweight_sr.degradation.sampling import draw_rows, parameters_from_cube
from mtlweight_sr.degradation.space import REALESRGAN_X2, REALESRGAN_X4, DegradationSpace, exact
from mtlweight_sr.degradation.subspaces import Task, box_in_words, task_from_ranges
from mtlweight_sr.score_tasks import ScoreTaskSpace, checked_task_ids

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


class TaskSpace:
    """A partition of a degradation space into tasks.

    Args:
        space: The distribution.
        tasks: Disjoint tasks with different names; a task's id is its place.
        partial: Whether the tasks may leave part of the space out.

    Raises:
        ValueError: Repeated names, overlapping tasks, a cut through an atom of a discrete column
            (both sides would claim it), or tasks that do not fill the space without `partial`.
    """

    def __init__(
        self, space: DegradationSpace, tasks: Sequence[Task], *, partial: bool = False
    ) -> None:
        _check_partition(space, tasks, partial)
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
        # Cumulated shares of a task's boxes, each shifted by the task's id: one search finds the
        # box of every sample.
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
            ids: Identity of each sample, `[B]`; the same id has the same row of the cube in every
                task.
            seed: Seed of the whole run.
            stream: Keeps draws for different purposes apart.

        Raises:
            TypeError: Task ids that are no integers.
            ValueError: Task ids out of range, or not one per id.
        """
        cube, choice, seeds = draw_rows(ids, seed, stream)
        task_ids = checked_task_ids(task_ids, len(self.tasks), len(seeds))
        box = torch.searchsorted(self._last, task_ids + choice, right=True)
        # Adding the id rounds: a choice next to one must not fall into the next task.
        box = torch.minimum(box, torch.searchsorted(self._box_task, task_ids, right=True) - 1)
        low, high = self._low[box], self._high[box]
        inside = torch.minimum(low + (high - low) * cube, torch.nextafter(high, low))
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
        """The definition of every task in words, one line per task."""
        lines = []
        for task in self.tasks:
            boxes = " or ".join(box_in_words(self.space, box) for box in task.boxes)
            lines.append(f"{task.name} (p = {task.mass}): {task.definition or boxes}")
        return "\n".join(lines)


def _check_partition(space: DegradationSpace, tasks: Sequence[Task], partial: bool) -> None:
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
                        f"expected cuts of the discrete column {column!r} between its values, "
                        f"at one of {', '.join(str(e) for e in sorted(edges[column]))}, got "
                        f"{side[0]} to {side[1]} in task {task.name!r}; write Task.from_ranges "
                        "with values"
                    )
    for a, b in itertools.combinations(tasks, 2):
        both = next(iter(intersections(a.boxes, b.boxes)), None)
        if both is not None:
            raise ValueError(
                f"expected disjoint tasks, got {a.name!r} and {b.name!r}, which share "
                f"{dict(both.sides)}; cut one of them"
            )
    total = sum((task.mass for task in tasks), Fraction(0))
    if total != 1 and not partial:
        raise ValueError(
            f"expected `tasks` that fill the space, got a total probability of {total} = "
            f"{float(total):.6g}; add the missing task or write partial=True"
        )


def _shares(task: Task) -> list[Fraction]:
    return [done / task.mass for done in itertools.accumulate(box.volume for box in task.boxes)]


def grid(
    space: DegradationSpace, blur_cuts: Sequence[int], noise_cuts: Sequence[float | Fraction]
) -> TaskSpace:
    """Products of intervals of the first kernel size and the first noise level.

    Args:
        space: The distribution.
        blur_cuts: Kernel sizes at which a new interval starts, increasing; (15,) for two intervals.
        noise_cuts: Levels in (0, 1) at which a new interval starts, increasing; (0.5,) for two
            intervals.

    Returns:
        (a + 1)(b + 1) tasks "blur0_noise0", "blur0_noise1", ..., blur first.

    Raises:
        ValueError: Cuts that are not increasing, or that leave an interval empty.
    """
    sizes = space.first.blur.kernel_sizes
    starts = [sizes[0], *blur_cuts]
    levels = [Fraction(0), *(exact(cut) for cut in noise_cuts), Fraction(1)]
    groups = [
        [size for size in sizes if start <= size < end]
        for start, end in zip(starts, [*blur_cuts, sizes[-1] + 1], strict=True)
    ]
    if not all(groups):
        raise ValueError(
            f"expected `blur_cuts` increasing within {sizes} and above {sizes[0]}, got "
            f"{tuple(blur_cuts)}; write ({sizes[-1]},)"
        )
    if any(low >= high for low, high in itertools.pairwise(levels)):
        raise ValueError(
            f"expected `noise_cuts` increasing within (0, 1), got {tuple(noise_cuts)}; write (0.5,)"
        )
    tasks = [
        Task(f"blur{i}_noise{j}", _product(space, group, low, high))
        for i, group in enumerate(groups)
        for j, (low, high) in enumerate(itertools.pairwise(levels))
    ]
    return TaskSpace(space, tasks)


def equal_mass(space: DegradationSpace, n: int) -> TaskSpace:
    """Slices of the first noise level of natural probability 1/n: "noise1" to "noise<n>".

    Raises:
        ValueError: `n` below 1.
    """
    if n < 1:
        raise ValueError(f"expected `n` >= 1, got {n}; write n=4")
    return TaskSpace(
        space,
        [
            Task(f"noise{i + 1}", (Box({"noise_level_1": (Fraction(i, n), Fraction(i + 1, n))}),))
            for i in range(n)
        ],
    )


def _product(
    space: DegradationSpace, sizes: Sequence[int], low: Fraction, high: Fraction
) -> tuple[Box, ...]:
    level = Box({"noise_level_1": (low, high)})
    return intersections(boxes_where(space, "kernel_size_1", set(sizes)), (level,))


_STRONG_BLUR = 15
_NONE, _HALF, _HIGH, _FULL = (Fraction(i, 4) for i in (0, 2, 3, 4))

# The tasks of a preset: name -> parts (weak or strong blur, noise level from, noise level to).
_Parts = Mapping[str, Sequence[tuple[str, Fraction, Fraction]]]
_PAPER: Mapping[str, _Parts] = {
    "paper2": {
        "low_noise": [("weak", _NONE, _HALF), ("strong", _NONE, _HALF)],
        "high_noise": [("weak", _HALF, _FULL), ("strong", _HALF, _FULL)],
    },
    "paper3": {
        "mild": [("weak", _NONE, _HALF)],
        "blur_or_noise": [("weak", _HALF, _FULL), ("strong", _NONE, _HALF)],
        "severe": [("strong", _HALF, _FULL)],
    },
    "paper4": {
        "mild": [("weak", _NONE, _HALF)],
        "blur": [("strong", _NONE, _HALF)],
        "noise": [("weak", _HALF, _FULL)],
        "severe": [("strong", _HALF, _FULL)],
    },
    "paper5": {
        "mild": [("weak", _NONE, _HALF)],
        "blur": [("strong", _NONE, _HALF)],
        "noise": [("weak", _HALF, _FULL)],
        "severe": [("strong", _HALF, _HIGH)],
        "extreme": [("strong", _HIGH, _FULL)],
    },
}


def _paper(name: str, space: DegradationSpace) -> TaskSpace:
    sizes = space.first.blur.kernel_sizes
    halves = {
        "weak": [size for size in sizes if size < _STRONG_BLUR],
        "strong": [size for size in sizes if size >= _STRONG_BLUR],
    }
    tasks = []
    for task, parts in _PAPER[name].items():
        boxes = [_product(space, halves[blur], low, high) for blur, low, high in parts]
        tasks.append(Task(task, merged(itertools.chain.from_iterable(boxes))))
    return TaskSpace(space, tasks)


def _two_stage4(space: DegradationSpace) -> TaskSpace:
    threshold = 28
    strong: list[Box] = []
    weak: list[Box] = list(boxes_where(space, "blur_2", False))
    for size in space.first.blur.kernel_sizes:
        for other in space.second.blur.kernel_sizes:
            box = intersections(
                intersections(
                    boxes_where(space, "kernel_size_1", size),
                    boxes_where(space, "kernel_size_2", other),
                ),
                boxes_where(space, "blur_2", True),
            )
            (strong if size + other >= threshold else weak).extend(box)
    blur = f"kernel_size_1 + kernel_size_2 (0 where blur_2 is off) {{}} {threshold}"
    noise = "noise_level_2 {} 1/2"
    tasks = []
    for name, boxes, sign, low in (
        ("mild", weak, "<", Fraction(0)),
        ("blur", strong, ">=", Fraction(0)),
        ("noise", weak, "<", _HALF),
        ("severe", strong, ">=", _HALF),
    ):
        level = Box({"noise_level_2": (low, low + _HALF)})
        words = f"{blur.format(sign)} and {noise.format('>=' if low else '<')}"
        tasks.append(Task(name, intersections(merged(boxes), (level,)), words))
    return TaskSpace(space, tasks)


PRESETS: Mapping[str, Callable[[DegradationSpace], TaskSpace | ScoreTaskSpace]] = MappingProxyType(
    {
        **{name: partial(_paper, name) for name in _PAPER},
        "two_stage4": _two_stage4,
        "physical4": ScoreTaskSpace,
    }
)
"""Ready-made tasks by name, each a function of a degradation space.

Masses on Real-ESRGAN's space: `paper2` 1/2 each (noise); `paper3` 1/4, 1/2, 1/4; `paper4` 1/4 each,
first kernel size from 15 and first noise level from 1/2; `paper5` the same with severe cut once
more at level 3/4; `two_stage4` 11/40, 9/40, 11/40, 9/40, both kernel sizes and the second noise
level; `physical4` medians of effective blur and noise.
"""


def preset(name: str, scale: int = 4) -> TaskSpace | ScoreTaskSpace:
    """Ready-made tasks on Real-ESRGAN's space.

    Args:
        name: A key of `PRESETS`.
        scale: 2 or 4.

    Raises:
        ValueError: An unknown name or scale.
    """
    spaces = {space.scale: space for space in (REALESRGAN_X2, REALESRGAN_X4)}
    if name not in PRESETS:
        raise ValueError(
            f"expected `name` among {tuple(PRESETS)}, got {name!r}; write preset('paper4')"
        )
    if scale not in spaces:
        raise ValueError(f"expected `scale` among {tuple(spaces)}, got {scale!r}; write scale=4")
    return PRESETS[name](spaces[scale])
