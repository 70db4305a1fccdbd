"""Losses of samples: how they are told from those of tasks, and the means they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mtlweight.distributed import average_over_ranks
from mtlweight.inputs import Losses, by_task, read_counts, read_losses


def read_samples(
    tasks: tuple[str, ...], losses: Losses, counts: Mapping[str, int] | None
) -> tuple[Losses, Mapping[str, int] | None, list[Tensor] | None]:
    """Returns one loss for each task, the samples behind each, and the losses of the samples.

    Those are None where the losses are of tasks, or one of them is of no use and to be refused.

    Args:
        tasks: The names of all tasks.
        losses: Of samples, `[B]` for each task, or of tasks.
        counts: The samples behind losses of tasks.

    Raises:
        ValueError: Some are of samples and some of tasks, or a task has none, or more than `[B]`.
    """
    samples = _samples(tasks, losses)
    if samples is None:
        return losses, counts, None
    groups = {
        task: x for task, x in samples.items() if isinstance(x, Tensor) and x.is_floating_point()
    }
    losses = samples | {task: x.mean() for task, x in groups.items()}
    if len(groups) < len(samples):
        return losses, counts, None
    return losses, {task: len(x) for task, x in groups.items()}, list(groups.values())


def mean_loss(tasks: tuple[str, ...], losses: Losses) -> tuple[Tensor, dict[str, float]]:
    """Returns this rank's part of the mean over tasks, and the loss of each over all ranks.

    The gradients of the parts average to that of the mean.

    Args:
        tasks: The names of all tasks.
        losses: Of samples, or of tasks, behind which each rank then has as many.

    Raises:
        ValueError: As a strategy refuses losses.
        TypeError: As a strategy refuses losses.
    """
    losses, counts, _ = read_samples(tasks, losses, None)
    step = read_losses(tasks, losses, training=True)
    numbers = None if counts is None else read_counts(tasks, step, counts)
    step = average_over_ranks(len(tasks), step, numbers)
    parts = step.values if step.factors is None else step.factors * step.values
    named = {tasks[i]: x for i, x in zip(step.index, step.seen.tolist(), strict=True)}
    return parts.sum() / len(step.index), named


def _samples(tasks: tuple[str, ...], losses: Losses) -> dict[str, Any] | None:
    """Returns the losses of samples by task, or None where they are those of tasks.

    Raises:
        ValueError: Some are of samples and some of tasks, or a task has none, or more than `[B]`.
    """
    given = losses.unbind() if isinstance(losses, Tensor) and losses.ndim > 1 else losses
    named = by_task(tasks, given, "Losses")
    shapes = {task: list(x.shape) for task, x in named.items() if isinstance(x, Tensor)}
    lists = {task: shape for task, shape in shapes.items() if shape}
    if all(shape == [1] for shape in lists.values()) and len(lists) < len(named):
        return None
    for task, shape in lists.items():
        if len(shape) != 1 or shape == [0]:
            raise ValueError(
                f"The loss of task {task!r} has shape {shape}: give SLGrad one number for each "
                "sample, as in loss.flatten(1).mean(1), and leave out tasks without samples."
            )
        if single := [other for other, shape in shapes.items() if not shape]:
            raise ValueError(
                f"The loss of task {task!r} has shape {shape}, and that of {single[0]!r} is a "
                "scalar: give SLGrad the losses of samples for every task, or one loss for each, "
                "as in loss.mean()."
            )
    return named
