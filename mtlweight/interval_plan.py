"""The plan of one interval: which samples it draws, for which tasks, in which batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtlweight.pools import Pools
from mtlweight.quotas import quotas as split_by_largest_remainder

_BITS = (1 << 63) - 1
# What the random numbers drawn from one seed are for, so that no two uses share a stream.
_SAMPLES, _BATCHES, _KEYS = 1, 2, 3


class SampleKey(int):
    """An index into the dataset that also says for which task it was drawn, and by which seed.

    It is the integer it holds, so every map-style dataset takes it. A dataset that looks closer
    reads `key.task`, and seeds what it draws at random with `key.seed`: the sample is then the
    same whatever the worker, the rank or the position at which training was resumed.

    Attributes:
        task: The id of the task that the sample serves.
        seed: A seed of its own, in [0, 2^63); no two draws of one sampler share it.
    """

    task: int
    seed: int

    def __new__(cls, index: int, task: int, seed: int) -> SampleKey:
        """Makes a key (an int is fixed before `__init__`)."""
        key = super().__new__(cls, index)
        key.task = task
        key.seed = seed
        return key

    def __reduce__(self) -> tuple[Any, ...]:
        return SampleKey, (int(self), self.task, self.seed)

    def __repr__(self) -> str:
        return f"SampleKey({int(self)}, task={self.task}, seed={self.seed})"


@dataclass(frozen=True)
class IntervalPlan:
    """The samples of one interval in global order, the same on every rank.

    Attributes:
        tasks: The task of each sample, int64 `[N]`.
        indices: The dataset index of each sample, int64 `[N]`.
        batch_size: The global batch; the last one is shorter if it doesn't divide N.
        first_key: The place of the first sample in the sampler's stream of seeds.
    """

    tasks: Tensor
    indices: Tensor
    batch_size: int
    first_key: int

    def __len__(self) -> int:
        return -(-len(self.tasks) // self.batch_size)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> list[SampleKey]:
        """Returns what one rank gets of a global batch.

        Args:
            step: The place of the batch in the interval.
            rank: The rank.
            world_size: The number of ranks; must divide every batch.

        Returns:
            The keys, `[batch_size / world_size]` of them.
        """
        start = step * self.batch_size
        share = (min(start + self.batch_size, len(self.tasks)) - start) // world_size
        start += rank * share
        rows = slice(start, start + share)
        return [
            SampleKey(index, task, _mix((self.first_key + place) & _BITS))
            for place, (index, task) in enumerate(
                zip(self.indices[rows].tolist(), self.tasks[rows].tolist(), strict=True), start
            )
        ]


def plan_interval(
    pools: Pools,
    quotas: Sequence[int],
    drawn: Sequence[int],
    *,
    seed: int,
    interval: int,
    batch_size: int,
) -> IntervalPlan:
    r"""Plans an interval: a pure function of its arguments.

    Draw $j$ of a pool of $n$ samples, counted from the start of training, is
    $\pi_{\lfloor j/n \rfloor}[j \bmod n]$ with one seeded permutation $\pi$ for every pass, so no
    sample comes again before its pool is used up.

    Args:
        pools: What there is to draw from.
        quotas: The number of samples of each task, `[T]`.
        drawn: How many samples each pool has given before this interval.
        seed: The seed of the sampler.
        interval: The number of the interval, from 0.
        batch_size: The global batch.

    Returns:
        The plan.
    """
    tasks = stratify(quotas, batch_size, _generator(seed, _BATCHES, interval))
    pool_of_sample = torch.tensor(pools.of_task)[tasks]
    indices = torch.empty_like(tasks)
    for pool, members in enumerate(pools.members):
        places = torch.where(pool_of_sample == pool)[0]
        indices[places] = members[_draws(len(members), drawn[pool], len(places), seed, pool)]
    # Intervals all hold equally many samples, so their keys never meet.
    first_key = _derive(seed, _KEYS) + interval * len(tasks)
    return IntervalPlan(tasks, indices, batch_size, first_key)


def stratify(quotas: Sequence[int], batch_size: int, generator: torch.Generator) -> Tensor:
    r"""Orders the tasks of an interval so that every batch mirrors the interval.

    A batch of $b$ samples out of $N$ holds $\lfloor N_i b / N \rfloor$ or
    $\lceil N_i b / N \rceil$ of task $i$, a short last batch included. The short batch is rounded
    by largest remainder; what it leaves is, per task, between the floor and the ceiling for all
    full batches together, so every full batch gets the floor, and the extras are laid out one
    after the other, round and round the batches: those of one task fall into different batches,
    and every batch gets equally many.

    Args:
        quotas: $N_i$, the number of samples of each task, `[T]`.
        batch_size: $b$.
        generator: Shuffles the full batches among each other, and the samples of each batch.

    Returns:
        The task of each sample, int64 `[N]`.
    """
    total = sum(quotas)
    num_full, short = divmod(total, batch_size)
    in_short = split_by_largest_remainder(list(quotas), short) if short else None
    floors = torch.tensor([quota * batch_size // total for quota in quotas])
    extras = torch.tensor(list(quotas)) - num_full * floors
    if in_short is not None:
        extras -= in_short
    counts = floors.repeat(num_full, 1)
    place = 0
    for task, extra in enumerate(extras.tolist()):
        counts[(torch.arange(extra) + place) % max(num_full, 1), task] += 1
        place += extra
    counts = counts[torch.randperm(num_full, generator=generator)]
    if in_short is not None:
        counts = torch.cat([counts, in_short[None]])
    tasks = torch.arange(len(quotas)).repeat(len(counts)).repeat_interleave(counts.flatten())
    batch = torch.arange(total) // batch_size
    shuffle = torch.rand(total, dtype=torch.float64, generator=generator)
    return tasks[(batch + shuffle).argsort(stable=True)]


def _draws(size: int, start: int, count: int, seed: int, pool: int) -> Tensor:
    """Places in a pool of draws `start` to `start + count`, `[count]`."""
    if count == 0:
        return torch.empty(0, dtype=torch.int64)
    first, last = start // size, (start + count - 1) // size
    passes = [
        torch.randperm(size, generator=_generator(seed, _SAMPLES, pool, number))
        for number in range(first, last + 1)
    ]
    return torch.cat(passes)[start - first * size :][:count]


def _generator(*path: int) -> torch.Generator:
    return torch.Generator().manual_seed(_derive(*path))


def _derive(*path: int) -> int:
    """A seed for what `path` names, in [0, 2^63)."""
    seed = 0
    for step in path:
        seed = _mix((seed + step + 0x1E3779B97F4A7C15) & _BITS)
    return seed


def _mix(value: int) -> int:
    """Scrambles 63 bits one to one (xor-shifts and odd factors), so keys never collide."""
    value = (value ^ (value >> 30)) * 0x3F58476D1CE4E5B9 & _BITS
    value = (value ^ (value >> 27)) * 0x14D049BB133111EB & _BITS
    return value ^ (value >> 31)
