"""What a sampler draws from: the samples of a dataset, and which tasks they serve."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtlweight.quotas import whole


@dataclass(frozen=True)
class Pools:
    """Samples to draw from, each pool without repetition until it is used up.

    Attributes:
        names: The names of the tasks, `[T]`.
        members: The dataset indices of each pool, each int64 `[n]`.
        of_task: The pool of each task, `[T]`: one each, or the same one for all.
        description: Tells one dataset from another, for checkpoints.
    """

    names: list[str]
    members: list[Tensor]
    of_task: list[int]
    description: str

    @classmethod
    def of_labels(
        cls, task_of_sample: Tensor | Sequence[int], names: Sequence[str] | None = None
    ) -> Pools:
        """Makes one pool per task out of samples that serve one task each.

        Args:
            task_of_sample: The task id of each sample, integers `[D]` from 0.
            names: The names of the tasks in order of id; by default `"0"` up to the highest id.

        Returns:
            The pools.

        Raises:
            TypeError: If the ids aren't integers.
            ValueError: If an id is out of range or a task has no samples.
        """
        tasks = torch.as_tensor(task_of_sample).detach().cpu()
        if tasks.ndim != 1 or len(tasks) == 0:
            raise ValueError(
                f"`task_of_sample` must be of shape [D], D >= 1, got {list(tasks.shape)}."
            )
        if tasks.is_floating_point() or tasks.is_complex() or tasks.dtype == torch.bool:
            raise TypeError(f"`task_of_sample` must be integer task ids, got {tasks.dtype}.")
        tasks = tasks.long()
        lowest, highest = int(tasks.min()), int(tasks.max())
        labels = _labels("names", highest + 1 if names is None else names)
        if lowest < 0 or highest >= len(labels):
            raise ValueError(
                f"`task_of_sample` must be ids from 0 to {len(labels) - 1}, got "
                f"{lowest if lowest < 0 else highest}."
            )
        members = [torch.where(tasks == task)[0] for task in range(len(labels))]
        for label, of_task in zip(labels, members, strict=True):
            if len(of_task) == 0:
                raise ValueError(
                    f"`task_of_sample` must have samples of every task, got none of {label!r}; "
                    "leave the task out and number the others from 0."
                )
        checksum = zlib.crc32(tasks.numpy().tobytes())
        description = f"{len(tasks)} samples of one task each (checksum {checksum:08x})"
        return cls(labels, members, list(range(len(labels))), description)

    @classmethod
    def for_every_task(cls, dataset_size: int, tasks: int | Sequence[str]) -> Pools:
        """Makes one pool of samples that serve every task.

        Args:
            dataset_size: The number of samples.
            tasks: The names of the tasks, or their number.

        Returns:
            The pools.

        Raises:
            TypeError: If a number isn't an integer.
            ValueError: If there are no samples or tasks, or two tasks share a name.
        """
        size = whole("dataset_size", dataset_size, least=1)
        labels = _labels("tasks", tasks)
        description = f"{size} samples for every task"
        return cls(labels, [torch.arange(size)], [0] * len(labels), description)


def _labels(argument: str, tasks: int | Sequence[str]) -> list[str]:
    if isinstance(tasks, str):
        raise TypeError(f"`{argument}` must be names, not one string: write [{tasks!r}].")
    if not isinstance(tasks, Sequence):
        return [str(task) for task in range(whole(argument, tasks, least=1))]
    labels = list(tasks)
    if not labels or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"`{argument}` must be at least one name, each a string, got {labels}.")
    if len(set(labels)) < len(labels):
        raise ValueError(f"`{argument}` must be different from each other, got {labels}.")
    return labels
