"""A batch sampler that draws exact quotas of every task, interval by interval."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Sampler

from .interval_plan import IntervalPlan, Pools, SampleKey, plan_interval
from .quotas import QuotaCarry, checked_weights, quotas, whole

__all__ = ["QuotaSampler", "SampleKey"]

Batch = TypeVar("Batch")


class QuotaSampler(Sampler[list[SampleKey]]):
    r"""Spends task weights on data: every interval holds exactly $N_i \approx w_i N$ samples.

    ```python
    sampler = QuotaSampler(task_of_sample, num_samples=6400, batch_size=32)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=4, persistent_workers=True)
    for interval in range(intervals):
        for batch in sampler.track(loader):
            ...
        sampler.set_weights(weights)
    ```

    One pass over the loader is one interval. Its plan is a pure function of the seed, the number
    of the interval, the quotas and the number of samples drawn so far, so it depends on neither
    workers nor ranks.

    - Quotas sum to `num_samples`, and their rounding error is carried (`mtlweight.quotas`).
    - Every batch holds its share of every task within one sample.
    - A task's samples come shuffled, none again before all are used up, across intervals too.
    - Every rank takes its part of the same global batches.
    - New weights take effect at the next interval: a running one, and what workers have
      prefetched of it, stays as planned.
    - Position: iterating goes on where the last iteration stopped. A loop that breaks off gets the
      remaining batches of the interval next, and so does one that resumes from `state_dict`.

    Read `mtlweight.QuotaSampler.track` before resuming in the middle of an interval with workers.
    The sampler shards by itself: don't let a framework shard it again (Lightning:
    `use_distributed_sampler=False`; Accelerate: leave the loader out of `prepare`).

    Args:
        task_of_sample: The task id of each sample of the dataset, integers `[D]` from 0.
        num_samples: $N$, the length of an interval in samples, over all ranks.
        batch_size: The size of the global batch, divided evenly among the ranks. If it doesn't
            divide `num_samples`, the last batch is shorter.
        seed: Seeds every shuffle and every key; the same on every rank, at least 0.
        minimum: The least number of samples of a task in an interval. With 0, a task of weight
            zero is never seen, and its next mean doesn't exist.
        names: The names of the tasks in order of id, `[T]`; by default `"0"`, `"1"`, ... up to the
            highest id.
        rank: The rank of this process; by default that of `torch.distributed`, read when an
            iteration starts. Goes with `world_size`.
        world_size: The number of ranks.

    Raises:
        TypeError: If an argument isn't an integer where one is due.
        ValueError: If an id is out of range, a task has no samples, or sizes don't fit.

    Source:
        Quotas: Eq. 12 of arXiv 2506.05607. The plan is ours.
    """

    def __init__(
        self,
        task_of_sample: Tensor | Sequence[int],
        *,
        num_samples: int,
        batch_size: int,
        seed: int = 0,
        minimum: int = 1,
        names: Sequence[str] | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
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
        self._set_up(
            Pools(members, list(range(len(labels)))),
            dataset=f"{len(tasks)} samples, checksum {zlib.crc32(tasks.numpy().tobytes()):08x}",
            names=labels,
            sizes=(num_samples, batch_size, seed, minimum),
            ranks=(rank, world_size),
        )

    @classmethod
    def for_generated(
        cls,
        dataset_size: int,
        tasks: int | Sequence[str],
        *,
        num_samples: int,
        batch_size: int,
        seed: int = 0,
        minimum: int = 1,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> Self:
        """Makes a sampler for data where every sample can serve every task.

        In super-resolution the degradation makes the task: a key pairs an image with a task, and
        the two are independent. The images run shuffled over the whole set, none again before all
        are used up, across tasks and intervals.

        Args:
            dataset_size: The number of samples of the dataset.
            tasks: The names of the tasks, or their number.
            num_samples: The length of an interval in samples, over all ranks.
            batch_size: The size of the global batch.
            seed: Seeds every shuffle and every key; the same on every rank, at least 0.
            minimum: The least number of samples of a task in an interval.
            rank: The rank of this process; by default that of `torch.distributed`.
            world_size: The number of ranks.

        Returns:
            The sampler.

        Raises:
            TypeError: If an argument isn't an integer where one is due.
            ValueError: If sizes don't fit.
        """
        sampler = cls.__new__(cls)
        size = whole("dataset_size", dataset_size, least=1)
        labels = _labels("tasks", tasks)
        sampler._set_up(
            Pools([torch.arange(size)], [0] * len(labels)),
            dataset=f"{size} samples for every task",
            names=labels,
            sizes=(num_samples, batch_size, seed, minimum),
            ranks=(rank, world_size),
        )
        return sampler

    def _set_up(
        self,
        pools: Pools,
        *,
        dataset: str,
        names: list[str],
        sizes: tuple[int, int, int, int],
        ranks: tuple[int | None, int | None],
    ) -> None:
        self.names = names
        self.num_samples = whole("num_samples", sizes[0], least=1)
        self.batch_size = whole("batch_size", sizes[1], least=1)
        self.seed = whole("seed", sizes[2], least=0)
        self.minimum = whole("minimum", sizes[3], least=0)
        self._pools = pools
        self._dataset = dataset
        self._ranks = ranks
        if any(value is not None for value in ranks):
            self._rank_and_world_size()
        self._interval = 0
        self._consumed = 0  # batches of this interval that the training loop has taken
        self._drawn = [0] * len(pools.members)  # before this interval
        self._carry = QuotaCarry(len(names))  # before this interval
        self._weights = torch.ones(len(names), dtype=torch.float64)
        self._running = False  # an iteration has begun, so the quotas are settled
        self._resumed = False  # the position was loaded, and no iteration has begun since
        self._tracked = False  # `track` counts, not the sampler
        self._iteration = 0  # the latest iteration; an older one may not go on
        self._length = self._num_batches
        self._charged, self._quotas = self._apportion()

    @property
    def interval(self) -> int:
        """The number of the interval that runs or, between two, comes next; from 0."""
        return self._interval

    @property
    def quotas(self) -> Tensor:
        """The quotas of the interval that runs or, between two, comes next; int64 `[T]`."""
        return self._quotas.clone()

    @property
    def named_quotas(self) -> dict[str, int]:
        """The quotas by task name."""
        return dict(zip(self.names, self._quotas.tolist(), strict=True))

    @property
    def consumed(self) -> int:
        """How many batches of the interval the training loop has taken."""
        return self._consumed

    def set_weights(self, weights: Tensor | Sequence[float] | Mapping[str, float]) -> None:
        """Sets the weights that quotas follow from the next interval on.

        Args:
            weights: By task name, or `[T]` in order of id; non-negative, finite, not all zero, of
                any scale. A tensor on an accelerator is waited for.

        Raises:
            ValueError: If a weight is invalid or missing; the old ones stay.
        """
        if isinstance(weights, Mapping):
            if set(weights) != set(self.names):
                raise ValueError(
                    f"`weights` must be of the tasks {self.names}, got {list(weights)}."
                )
            weights = [float(weights[name]) for name in self.names]
        values = checked_weights(weights, self.names)
        if len(values) != len(self.names):
            raise ValueError(
                f"`weights` must hold one weight for each of the tasks {self.names}, got "
                f"{len(values)}: {values.tolist()}."
            )
        self._weights = values.clone()
        if self._consumed == self._num_batches:
            self._close()
        elif not self._running:
            self._charged, self._quotas = self._apportion()

    def plan(self) -> IntervalPlan:
        """Returns the plan of the interval that runs or comes next; `plan().batch(step)` reads it.

        Returns:
            The whole plan over all ranks, from the first batch of the interval.
        """
        return plan_interval(
            self._pools,
            self._quotas.tolist(),
            self._drawn,
            seed=self.seed,
            interval=self._interval,
            batch_size=self.batch_size,
        )

    def __len__(self) -> int:
        """The number of batches of the iteration that runs or comes next.

        That is a whole interval, except right after a resume or a loop that broke off: then the
        batches that remain.
        """
        return self._length

    def __iter__(self) -> Iterator[list[SampleKey]]:
        rank, world_size = self._rank_and_world_size()
        # A loop that knows the length may never ask for more; a resumed one shall end its interval.
        if self._consumed == self._num_batches and not self._resumed:
            self._close()
        self._iteration += 1
        self._running, self._resumed = True, False
        self._length = self._num_batches - self._consumed
        return self._batches(self._iteration, not self._tracked, rank, world_size)

    def _batches(
        self, iteration: int, counts: bool, rank: int, world_size: int
    ) -> Iterator[list[SampleKey]]:
        plan = self.plan()
        try:
            for step in range(self._consumed, len(plan)):
                if self._iteration != iteration and self._interval_of_plan(plan):
                    raise RuntimeError(
                        "This iteration of QuotaSampler is over: a newer one has begun or a state "
                        "was loaded since. Iterate over the loader anew."
                    )
                if counts:
                    self._consumed = step + 1
                yield plan.batch(step, rank, world_size)
            if counts:
                self._close()
        finally:
            pass
