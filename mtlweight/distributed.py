"""The one rule of distributed training: what enters a strategy is averaged over ranks first."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from mtlweight.inputs import Step

_AVAILABLE = dist.is_available()


def world_size() -> int:
    """Returns the number of ranks; 1 where no process group exists."""
    return dist.get_world_size() if _AVAILABLE and dist.is_initialized() else 1


def sum_over_ranks(x: Tensor) -> Tensor:
    """Returns the sum of a detached tensor over all ranks; the tensor itself on a single one."""
    if world_size() == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total


def length_over_ranks(x: Tensor, parted: bool) -> Tensor:
    """Returns the length of a mean over ranks, `[]`.

    Args:
        x: The mean, or this rank's part of it, times the number of ranks.
        parted: Whether each rank has a part, as with features.
    """
    if parted and world_size() > 1:
        return sum_over_ranks(x.square().sum()).sqrt() / world_size()
    length: Tensor = torch.linalg.vector_norm(x)
    return length


def products_over_ranks(products: Tensor, device: torch.device) -> Tensor:
    """Returns inner products of gradients of features, of which each rank has its samples' part.

    Args:
        products: Those of this rank, on the host.
        device: Where ranks exchange them.
    """
    if world_size() == 1:
        return products
    return sum_over_ranks(products.to(device)).cpu() / world_size() ** 2


def average_over_ranks(num_tasks: int, step: Step, counts: list[float] | None) -> Step:
    """Returns the step with the losses of all ranks, averaged, and the numbers behind them.

    Every rank sends one vector of fixed length, whatever tasks it holds: reducing only the tasks
    that a rank has would hang the others, and a mean of the ranks' means would be another number.

    Args:
        num_tasks: The number of all tasks, T.
        step: The losses of this rank.
        counts: The number of samples behind each of its losses, `[m]`; None for one.
    """
    if world_size() == 1:
        return step if counts is None else replace(step, counts=torch.tensor(counts))
    values = step.values.detach()
    once = values.new_ones(len(step.index))
    here = once if counts is None else values.new_tensor(counts)
    mine = torch.tensor(step.index, device=values.device)
    rows = torch.stack([values * here, here, once])
    total, count, holders = sum_over_ranks(values.new_zeros(3, num_tasks).index_copy(1, mine, rows))
    # Every rank must know which tasks take part, so here, with several ranks, the host waits.
    numbers, held_by = torch.stack([count, holders]).tolist()
    everywhere = [task for task, number in enumerate(numbers) if number > 0]
    return replace(
        step,
        index=everywhere,
        seen=(total / count)[everywhere],
        local=torch.tensor([everywhere.index(i) for i in step.index], device=values.device),
        factors=world_size() * here / count[mine],
        counts=None if counts is None else torch.tensor([numbers[i] for i in everywhere]),
        scattered=[i for i in everywhere if held_by[i] < world_size()],
    )
