"""What every set of tasks offers to training, validation and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mtlweight_sr.degradation.mixture import Space
from mtlweight_sr.degradation.parameters import DegradationParameters
from mtlweight_sr.degradation.sampling import draw_parameters

__all__ = ["TaskDraws", "TaskIds", "checked_task_ids"]

TaskIds = Tensor | Sequence[int] | Sequence[str] | int | str
"""Tasks by their places or names: one per sample, or one for all."""


class TaskDraws(Protocol):
    """Tasks, as parts of a degradation space, that samples can be drawn from.

    Attributes:
        space: The distribution that the tasks are parts of.
        names: Names of the tasks; a task's id is its place.
        masses: Natural probability of every task.
    """

    space: Space
    names: tuple[str, ...]
    masses: Mapping[str, Fraction]

    def draw(
        self, task_ids: TaskIds, ids: Sequence[int] | Tensor, seed: int, stream: int = 0
    ) -> DegradationParameters:
        """Parameters of samples of given tasks, each exactly from its task's conditional law.

        A row is a pure function of its task, its id, `seed` and `stream`: batch layout, workers and
        world size do not enter.

        Args:
            task_ids: The task of each sample, `[B]` places or names, or one for all samples.
            ids: Identity of each sample, `[B]`; in tasks of boxes the same id has the same row of
                the cube in every task.
            seed: Seed of the whole run.
            stream: Keeps draws for different purposes apart.

        Raises:
            TypeError: Tasks that are neither integers nor names.
            ValueError: Unknown tasks, or not one per id.
        """

    def draw_natural(
        self, ids: Sequence[int] | Tensor, seed: int, stream: int = 0
    ) -> DegradationParameters:
        """Parameters from the whole space, tasks or not."""
        return draw_parameters(self.space, ids, seed, stream)

    def describe(self) -> str:
        """The definition of every task in words, one line per task."""


def checked_task_ids(task_ids: TaskIds, names: Sequence[str], samples: int) -> Tensor:
    """The tasks of samples as places among `names`, `[samples]` int64 on the CPU.

    Raises:
        TypeError: Tasks that are neither integers nor names.
        ValueError: Unknown tasks, or neither one nor one per sample.
    """
    if isinstance(task_ids, Tensor):
        places = task_ids.cpu()
    elif isinstance(task_ids, int | str | np.integer):
        places = torch.full((samples,), _place(task_ids, names))
    else:
        places = torch.as_tensor([_place(task, names) for task in task_ids])
        places = places.long() if not len(places) else places
    if places.is_floating_point() or places.is_complex() or places.dtype == torch.bool:
        raise TypeError(
            f"expected `task_ids` of integers or names, got {places.dtype}; write task_ids.long()"
        )
    if places.shape != (samples,):
        raise ValueError(
            f"expected one of `task_ids` per id, got shape {list(places.shape)} for {samples} "
            f"ids; write torch.full(({samples},), task)"
        )
    if samples and not (int(places.min()) >= 0 and int(places.max()) < len(names)):
        raise ValueError(
            f"expected `task_ids` in [0, {len(names)}), got {int(places.min())} to "
            f"{int(places.max())}; write places in `names`"
        )
    return places.long()


def _place(task: int | str, names: Sequence[str]) -> int:
    if not isinstance(task, str):
        return int(task) if isinstance(task, np.integer) else task
    if task not in names:
        raise ValueError(
            f"expected `task_ids` among {', '.join(names)}, got {task!r}; write {names[0]!r}"
        )
    return names.index(task)
