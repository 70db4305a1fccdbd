"""Ways to cut a degradation space: products of intervals, slices, trees, components."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

from mtlweight_sr.degradation.boxes import Box, boxes_where, intersections
from mtlweight_sr.degradation.columns import COLUMNS, atom_edges
from mtlweight_sr.degradation.mixture import Mixture, Space
from mtlweight_sr.degradation.space import DegradationSpace, Stage, exact
from mtlweight_sr.degradation.subspaces import Task
from mtlweight_sr.tasks.space import TaskSpace

__all__ = ["components", "equal_mass", "grid", "product", "tree"]


def product(
    space: DegradationSpace, sizes: Sequence[int], low: Fraction, high: Fraction
) -> tuple[Box, ...]:
    """Some first kernel sizes, at first noise levels from `low` to `high`."""
    level = Box({"noise_level_1": (low, high)})
    return intersections(boxes_where(space, "kernel_size_1", set(sizes)), (level,))


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
        Task(f"blur{i}_noise{j}", product(space, group, low, high))
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


def tree(space: Space, n: int, columns: Sequence[str]) -> TaskSpace:
    """Recursive median cuts: any number of tasks, of natural probabilities as equal as can be.

    The most probable part is cut in two at the middle of a column, over and over; the columns take
    turns from the root down. With a power of two, continuous columns give equal probabilities.

    Args:
        space: The distribution.
        n: The number of tasks.
        columns: Columns of the cube, such as ("noise_level_1", "kernel_size_1"). A discrete one is
            cut between its values, as near to the middle as they allow.

    Returns:
        Tasks named by their way down, "low", "high_low", "high_high" and so on; first come the ones
        lower in the first column.

    Raises:
        ValueError: `n` below 1, an unknown column, or more tasks than the columns' values allow.
    """
    unknown = [column for column in columns if column not in COLUMNS]
    if n < 1 or unknown or not columns:
        raise ValueError(
            f"expected `n` >= 1 and `columns` of the cube, got n={n} and {tuple(columns)}; write "
            "tree(space, 4, ('noise_level_1', 'kernel_size_1')), with columns among "
            f"{', '.join(COLUMNS)}"
        )
    leaves: list[tuple[tuple[str, ...], Box]] = [((), Box({}))]
    while len(leaves) < n:
        cuts = [
            (box.volume, -len(path), i, halves)
            for i, (path, box) in enumerate(leaves)
            if (halves := _halves(space, box, columns, len(path))) is not None
        ]
        if not cuts:
            raise ValueError(
                f"expected `n` <= {len(leaves)}, all that {tuple(columns)} can tell apart, got "
                f"{n}; add a continuous column"
            )
        *_, i, halves = max(cuts, key=lambda cut: (cut[0], cut[1], -cut[2]))
        path = leaves[i][0]
        leaves[i : i + 1] = [((*path, "low"), halves[0]), ((*path, "high"), halves[1])]
    return TaskSpace(space, [Task("_".join(path) or "all", (box,)) for path, box in leaves])


def _halves(space: Space, box: Box, columns: Sequence[str], depth: int) -> tuple[Box, Box] | None:
    """A box cut at the middle of the column whose turn it is, or of the next that can be cut."""
    for turn in range(len(columns)):
        column = columns[(depth + turn) % len(columns)]
        low, high = box.sides.get(column, (Fraction(0), Fraction(1)))
        middle = (low + high) / 2
        edges = atom_edges(space).get(column)
        cut = middle
        if edges is not None:
            between = [edge for edge in edges if low < edge < high]
            if not between:
                continue
            cut = min(between, key=lambda edge: (abs(edge - middle), edge))
        return Box({**box.sides, column: (low, cut)}), Box({**box.sides, column: (cut, high)})
    return None


def components(mixture: Mixture) -> TaskSpace:
    """One task per component of a mixture, of the component's name and share."""
    return TaskSpace(
        mixture,
        [
            Task(part.name, boxes_where(mixture, "component", part.name), _in_words(part.space))
            for part in mixture.components
        ],
    )


def _in_words(space: DegradationSpace) -> str:
    stages = [_stage_in_words(stage) for stage in (space.first, space.second)]
    return "; then ".join(stage for stage in stages if stage)


def _stage_in_words(stage: Stage) -> str:
    resize = stage.resize
    factors = [
        *(resize.up_range if resize.up else ()),
        *(resize.down_range if resize.down else ()),
    ]
    parts = (
        ("blur of sigma {:g} to {:g}", stage.blur.sigma_x, stage.blur.on),
        ("resize to {:g} to {:g}", (min(factors, default=1), max(factors, default=1)), factors),
        ("noise of {:g} to {:g}/255", stage.noise.sigma, stage.noise.on),
        ("JPEG of {:g} to {:g}", stage.jpeg.quality, stage.jpeg.on),
    )
    return ", ".join(words.format(*bounds) for words, bounds, on in parts if on)
