"""From the losses of samples to the losses of tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def task_means(
    sample_losses: Tensor, tasks: Tensor | Sequence[int], names: Sequence[str] | None = None
) -> dict[str, Tensor]:
    r"""Averages sample losses per task; tasks absent from the batch are left out.

    $L_i = \frac{1}{|B_i|} \sum_{k \in B_i} \ell_k$ with $B_i$ the samples of task $i$ in the batch.
    Autograd passes through, and the dtype is kept.

    Keep the task ids on the CPU (a list, or a tensor that didn't go to the accelerator with the
    images): which tasks are there must be known on the host, and ids on an accelerator make it
    wait for the device at every step.

    Args:
        sample_losses: Losses `[B]`, or `[B, ...]` (such as a loss map), averaged over the rest.
        tasks: The task id of each sample, integers `[B]` from 0.
        names: The names of the tasks in order of id, `[T]`; by default `"0"`, `"1"`, ....

    Returns:
        The mean loss of each task present, in order of id.

    Raises:
        TypeError: If `sample_losses` isn't floating-point or `tasks` aren't integers.
        ValueError: If there are no samples, the lengths differ, or an id is out of range.

    Source:
        Ours.
    """
    if not (isinstance(sample_losses, Tensor) and sample_losses.is_floating_point()):
        got = sample_losses.dtype if isinstance(sample_losses, Tensor) else type(sample_losses)
        raise TypeError(f"`sample_losses` must be a floating-point tensor [B, ...], got {got}.")
    if sample_losses.numel() == 0 or sample_losses.ndim == 0:
        raise ValueError(
            "`sample_losses` must be of shape [B] or [B, ...] with at least one sample, got shape "
            f"{list(sample_losses.shape)}; use reduction='none' in the loss."
        )
    ids = _ids(tasks)
    if ids.shape != sample_losses.shape[:1]:
        raise ValueError(
            f"`tasks` must hold one id per sample: `sample_losses` has shape "
            f"{list(sample_losses.shape)}, `tasks` has shape {list(ids.shape)}."
        )
    rows = rows_by_task(ids, names)
    # One gather brings the samples of a task together, so that each mean reads one slice.
    order = torch.cat(list(rows.values())).to(sample_losses.device, non_blocking=True)
    losses = sample_losses.flatten(1).mean(1) if sample_losses.ndim > 1 else sample_losses
    parts = losses.index_select(0, order).split_with_sizes([len(mine) for mine in rows.values()])
    return {task: part.mean() for task, part in zip(rows, parts, strict=True)}


def rows_by_task(
    tasks: Tensor | Sequence[int], names: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Returns which rows of a batch belong to which task; tasks absent from it are left out.

    For networks in which the tasks are rows of one batch. Strategies that read gradients cost T
    backward passes through a joint forward pass. With a forward pass for each task, each passes
    through its own rows alone, and all of them together cost what one joint pass does:

    ```python
    losses = {
        task: loss(network(inputs[rows]), targets[rows])
        for task, rows in rows_by_task(batch.tasks, names).items()
    }
    ```

    Batch normalisation then sees each task apart.

    Args:
        tasks: The task id of each sample, integers `[B]` from 0. Best kept on the CPU.
        names: The names of the tasks in order of id, `[T]`; by default `"0"`, `"1"`, ....

    Returns:
        The rows of each task present, in order of id: int64 `[n_i]`, on the CPU.

    Raises:
        TypeError: If `tasks` aren't integers.
        ValueError: If there are none, or an id is out of range.

    Source:
        Ours.
    """
    ids = _ids(tasks)
    if ids.ndim != 1 or not len(ids):
        raise ValueError(f"`tasks` must be [B], one id per sample, got shape {list(ids.shape)}.")
    ids = ids.cpu()
    counts = Counter(ids.tolist())
    present = sorted(counts)
    if present[0] < 0 or (names is not None and present[-1] >= len(names)):
        bad = present[0] if present[0] < 0 else present[-1]
        limit = "" if names is None else f" and below {len(names)}, the number of names"
        raise ValueError(f"`tasks` must be at least 0{limit}: got id {bad}.")
    rows = ids.argsort(stable=True).split_with_sizes([counts[i] for i in present])
    keys = [str(i) if names is None else names[i] for i in present]
    return dict(zip(keys, rows, strict=True))


def _ids(tasks: Tensor | Sequence[int]) -> Tensor:
    ids = torch.as_tensor(tasks)
    if ids.dtype not in _INTEGERS and ids.numel():
        raise TypeError(f"`tasks` must be integer task ids, got {ids.dtype}.")
    return ids
