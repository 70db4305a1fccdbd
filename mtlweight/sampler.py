"""A batch sampler that draws exact quotas of every task, interval by interval."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, distributed
from torch.utils.data import Sampler

from mtlweight.interval_plan import IntervalPlan, SampleKey, plan_interval
from mtlweight.pools import Pools
from mtlweight.quotas import QuotaCarry, checked_weights, quotas, whole

Batch = TypeVar("Batch")


class QuotaSampler(Sampler[list[SampleKey]]):
    r"""Spends task weights on data: every interval holds $N_i = w_i N$ samples, to the integer.

    ```python
    sampler = QuotaSampler(task_of_sample, num_samples=6400, batch_size=32)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=4, persistent_workers=True)
    for interval in range(intervals):
        for batch in sampler.track(loader):
            ...
        sampler.set_weights(weights)
    ```

    One pass over the loader is one interval. Its plan is a pure function of the seed, the number
    of the interval, the quotas and the number of samples drawn so far; workers and ranks don't
    enter it.

    - Quotas sum to `num_samples`, and their rounding error is carried (`mtlweight.quotas`).
    - Every batch holds its share of every task within one sample.
    - A task's samples come shuffled, none again before all are used up, across intervals too.
    - Every rank takes its part of the same global batches.
    - New weights take effect at the next interval: a running one, and what workers have
      prefetched of it, stays as planned.
    - An iteration goes on where the last one stopped: a loop that broke off gets the remaining
      batches of the interval, and so does one that resumes from `state_dict`.

    Resuming is exact if the batches that the loop has taken are counted: wrap the loader in
    `track`. Without it the sampler counts what it hands out, which is the same with
    `num_workers=0`, but ahead of the loop by what workers have prefetched otherwise.

    The sampler shards by itself; don't let a framework shard it again (Lightning:
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
        pools = Pools.of_labels(task_of_sample, names)
        self._set_up(pools, num_samples, batch_size, seed, minimum, rank, world_size)

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
        the two are independent. The images come shuffled over the whole set, none again before all
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
        pools = Pools.for_every_task(dataset_size, tasks)
        sampler._set_up(pools, num_samples, batch_size, seed, minimum, rank, world_size)
        return sampler

    def _set_up(
        self,
        pools: Pools,
        num_samples: int,
        batch_size: int,
        seed: int,
        minimum: int,
        rank: int | None,
        world_size: int | None,
    ) -> None:
        self.num_samples = whole("num_samples", num_samples, least=1)
        self.batch_size = whole("batch_size", batch_size, least=1)
        self.seed = whole("seed", seed, least=0)
        self.minimum = whole("minimum", minimum, least=0)
        self.names = pools.names
        self._pools = pools
        if self.num_samples < self.minimum * len(self.names):
            raise ValueError(
                f"`num_samples` must hold `minimum` = {self.minimum} of each of the "
                f"{len(self.names)} tasks, got {self.num_samples}; make the interval longer."
            )
        if (rank is None) != (world_size is None):
            raise ValueError(
                f"`rank` and `world_size` go together: got {rank} and {world_size}; give both, or "
                "neither to take those of torch.distributed."
            )
        self._ranks = None
        if rank is not None and world_size is not None:
            self._ranks = (
                whole("rank", rank, least=0),
                whole("world_size", world_size, least=1),
            )
            self._rank_and_world_size()
        self._num_batches = -(-self.num_samples // self.batch_size)
        self._length = self._num_batches
        self._interval = 0
        self._consumed = 0  # batches of the interval that the loop has taken
        self._drawn = [0] * len(pools.members)  # samples of each pool, before the interval
        self._carry = QuotaCarry(len(self.names))  # before the interval
        self._weights = torch.ones(len(self.names), dtype=torch.float64)
        self._running = False  # an iteration has begun: the quotas stand
        self._resumed = False  # a position was loaded, and no iteration has begun since
        self._tracked = False  # `track` counts the batches
        self._iteration = 0  # changes whenever iterations that began before are void
        self._apportion()

    @property
    def interval(self) -> int:
        """The number, from 0, of the interval that runs or, between two, comes next."""
        return self._interval

    @property
    def consumed(self) -> int:
        """How many batches of the interval the training loop has taken."""
        return self._consumed

    @property
    def quotas(self) -> Tensor:
        """The quotas of the interval that runs or, between two, comes next; int64 `[T]`."""
        return self._quotas.clone()

    @property
    def named_quotas(self) -> dict[str, int]:
        """The quotas by task name."""
        return dict(zip(self.names, self._quotas.tolist(), strict=True))

    def set_weights(self, weights: Tensor | Sequence[float] | Mapping[str, float]) -> None:
        """Sets the weights that the quotas follow from the next interval on.

        Before the first batch of an interval is asked for, that is this interval; once all its
        batches have been handed out, it is over.

        Args:
            weights: By task name, or `[T]` in order of id; non-negative, finite, not all zero, of
                any scale. A tensor on an accelerator is waited for.

        Raises:
            TypeError: If the weights aren't numbers.
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
            self._apportion()

    def plan(self) -> IntervalPlan:
        """Returns the plan of the interval that runs or comes next, over all ranks.

        Returns:
            The plan from the first batch of the interval; `plan().batch(step)` reads it.
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

        That is those of a whole interval, except right after a resume or a loop that broke off:
        then those that remain.
        """
        return self._length

    def __iter__(self) -> Iterator[list[SampleKey]]:
        # Nothing happens before the first batch is asked for: a DataLoader with workers makes two
        # iterators and uses one.
        rank, world_size = self._rank_and_world_size()
        # A loop that knows the length needn't ask for the end. One that was resumed at the last
        # batch still has to: its interval ends with an empty iteration, and what follows it.
        if self._consumed == self._num_batches and not self._resumed:
            self._close()
        self._iteration += 1
        self._running, self._resumed = True, False
        iteration, tracked, plan = self._iteration, self._tracked, self.plan()
        self._length = self._num_batches - self._consumed
        try:
            for step in range(self._consumed, self._num_batches):
                self._refuse_stale(iteration)
                if not tracked:
                    self._consumed = step + 1
                yield plan.batch(step, rank, world_size)
            if not tracked and iteration == self._iteration:
                self._close()
        finally:
            if not tracked:
                self._break_off(iteration)

    def track(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """Yields the batches of a loader over this sampler, and counts those the loop has taken.

        A batch counts as soon as the loop has it: save after its step. Workers may prefetch as
        they like; a resume continues with the first batch that the loop hadn't taken, under any
        number of workers and ranks.

        Args:
            loader: A loader with `batch_sampler=self`.

        Yields:
            The batches of the loader.

        Raises:
            ValueError: If the loader doesn't use this sampler.
            RuntimeError: If the loader gives more or fewer batches than the interval holds (a
                framework shards or pads it), or another iteration begins before this one ends.
        """
        before = self._iteration
        iteration = None
        self._tracked = True
        try:
            for batch in loader:
                iteration = self._iteration if iteration is None else iteration
                self._refuse_foreign(iteration == before)
                self._refuse_stale(iteration)
                if self._consumed == self._num_batches:
                    self._refuse_length("more than")
                self._consumed += 1
                yield batch
            iteration = self._iteration if iteration is None else iteration
            self._refuse_foreign(iteration == before)
            if iteration == self._iteration:
                if self._consumed < self._num_batches:
                    self._refuse_length(f"{self._consumed} of")
                self._close()
        finally:
            self._tracked = False
            self._break_off(iteration)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state, down to the position inside the interval, in plain containers.

        Returns:
            Numbers, strings and lists; `torch.load(weights_only=True)` takes them.
        """
        return {
            **self._identity(),
            "interval": self._interval,
            "consumed": self._consumed,
            "drawn": list(self._drawn),
            "quotas": self._quotas.tolist(),
            "weights": self._weights.tolist(),
            "owed_before": list(self._carry.owed),
            "owed_after": list(self._charged.owed),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state; the next iteration yields the batches that remain of its interval.

        If none remain, that iteration is empty, so that what follows an interval in the training
        loop is made up for. The number of ranks and workers may differ from when it was saved.

        Args:
            state: What `state_dict` returned.

        Raises:
            ValueError: If it is the state of another sampler; this one stays as it is.
        """
        own = self.state_dict()
        if set(state) != set(own):
            raise ValueError(
                f"`state` must hold the entries {sorted(own)}, got {sorted(state)}; load what "
                "QuotaSampler.state_dict() returned."
            )
        for entry, value in self._identity().items():
            if state[entry] != value:
                raise ValueError(
                    f"`state` must be of a sampler like this one: its {entry} is {state[entry]!r}, "
                    f"here it is {value!r}."
                )
        self._interval = state["interval"]
        self._consumed = state["consumed"]
        self._drawn = list(state["drawn"])
        self._quotas = torch.tensor(state["quotas"], dtype=torch.int64)
        self._weights = torch.tensor(state["weights"], dtype=torch.float64)
        self._carry.owed = list(state["owed_before"])
        self._charged.owed = list(state["owed_after"])
        self._running = self._consumed > 0
        self._resumed = True
        self._iteration += 1
        self._length = self._num_batches - self._consumed

    def _identity(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "dataset": self._pools.description,
            "num_samples": self.num_samples,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    def _apportion(self) -> None:
        charged = self._carry.copy()
        self._quotas = quotas(self._weights, self.num_samples, self.minimum, charged)
        self._charged = charged

    def _close(self) -> None:
        """Ends the interval."""
        for task, pool in enumerate(self._pools.of_task):
            self._drawn[pool] += int(self._quotas[task])
        self._carry = self._charged
        self._interval += 1
        self._iteration += 1
        self._consumed = 0
        self._running = self._resumed = False
        self._length = self._num_batches
        self._apportion()

    def _break_off(self, iteration: int | None) -> None:
        """Settles the length of the next iteration if this one leaves batches over."""
        if iteration == self._iteration:
            self._length = self._num_batches - self._consumed or self._num_batches

    def _rank_and_world_size(self) -> tuple[int, int]:
        rank, world_size = self._ranks or (0, 1)
        if self._ranks is None and distributed.is_available() and distributed.is_initialized():
            rank, world_size = distributed.get_rank(), distributed.get_world_size()
        if rank >= world_size:
            raise ValueError(f"`rank` must be below `world_size` = {world_size}, got {rank}.")
        for what, size in (
            ("`batch_size`", self.batch_size),
            ("the last batch, `num_samples` % `batch_size`,", self.num_samples % self.batch_size),
        ):
            if size % world_size:
                raise ValueError(
                    f"Every global batch must divide evenly among the ranks: {what} is {size}, "
                    f"`world_size` is {world_size}; change `batch_size` or `num_samples`."
                )
        return rank, world_size

    def _refuse_stale(self, iteration: int) -> None:
        if iteration != self._iteration:
            raise RuntimeError(
                "This iteration over a QuotaSampler is over: another one began, or a state was "
                "loaded, since. Iterate over the loader anew."
            )

    def _refuse_foreign(self, foreign: bool) -> None:
        if foreign:
            raise ValueError(
                "`loader` must draw from this sampler; make it with DataLoader(dataset, "
                "batch_sampler=sampler)."
            )

    def _refuse_length(self, got: str) -> None:
        raise RuntimeError(
            f"The loader gave {got} the {self._num_batches} batches of the interval: something "
            "shards or pads it again. Hand it to the loop as it is (Lightning: "
            "use_distributed_sampler=False; Accelerate: leave it out of `prepare`)."
        )
