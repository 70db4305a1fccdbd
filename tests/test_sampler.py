from __future__ import annotations

import copy
import io
import pickle
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mtlweight.interval_plan import stratify
from mtlweight.sampler import QuotaSampler, SampleKey

TASKS = [0] * 11 + [1] * 7 + [2] * 5
Draw = tuple[int, int, int]


class Keys(Dataset[Tensor]):
    """Gives back what it was asked for."""

    def __getitem__(self, key: SampleKey) -> Tensor:
        return torch.tensor([int(key), key.task, key.seed])


def make(**options: Any) -> QuotaSampler:
    options = {"num_samples": 20, "batch_size": 4, "seed": 3, **options}
    return QuotaSampler(TASKS, **options)


def draws(batches: Any) -> list[list[Draw]]:
    return [[(int(key), key.task, key.seed) for key in batch] for batch in batches]


def loaded(batches: Any) -> list[list[Draw]]:
    return [[tuple(row) for row in batch.tolist()] for batch in batches]


def run(sampler: QuotaSampler, intervals: int) -> list[list[Draw]]:
    return [batch for _ in range(intervals) for batch in draws(sampler)]


def counts(batches: list[list[Draw]], num_tasks: int = 3) -> list[int]:
    tally = Counter(task for batch in batches for _, task, _ in batch)
    return [tally[task] for task in range(num_tasks)]


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    result: dict[str, Any] = torch.load(file, weights_only=True)
    return result


# Keys


def test_a_key_is_an_index_that_survives_pickling_and_copying() -> None:
    key = SampleKey(3, 1, 2**62 + 5)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        other = pickle.loads(pickle.dumps([key], protocol=protocol))[0]
        assert (int(other), other.task, other.seed) == (3, 1, 2**62 + 5)
    for other in (copy.copy(key), copy.deepcopy(key)):
        assert type(other) is SampleKey
        assert (int(other), other.task, other.seed) == (3, 1, 2**62 + 5)
    assert ["a", "b", "c", "d"][key] == "d"
    assert torch.arange(5)[key] == 3
    assert np.arange(5)[key] == 3
    assert repr(key) == "SampleKey(3, task=1, seed=4611686018427387909)"


def test_seeds_are_unique_and_fit_int64() -> None:
    batches = run(make(), 100)
    seeds = {seed for batch in batches for _, _, seed in batch}
    assert len(seeds) == 100 * 20
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds.isdisjoint(seed for batch in run(make(seed=4), 100) for _, _, seed in batch)
    torch.Generator().manual_seed(max(seeds))


# Quotas and batches


def test_quotas_are_exact_in_every_interval() -> None:
    sampler = make(names=["a", "b", "c"])
    for weights in ([0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [1.0, 0.0, 0.0]):
        sampler.set_weights(weights)
        quotas = sampler.quotas.tolist()
        assert sum(quotas) == 20
        assert counts(draws(sampler)) == quotas
    assert sampler.interval == 3


def test_minimum_keeps_every_task_alive() -> None:
    sampler = make(names=["a", "b", "c"])
    sampler.set_weights([1, 0, 0])
    assert sampler.named_quotas == {"a": 18, "b": 1, "c": 1}
    assert make(minimum=0).quotas.sum() == 20


def test_rounding_is_carried_from_interval_to_interval() -> None:
    sampler = make(num_samples=10)
    total = torch.zeros(3, dtype=torch.int64)
    for interval in range(1, 31):
        total += sampler.quotas
        list(sampler)
        assert float((total - interval * 10 / 3).abs().max()) < 1
    assert total.tolist() == [100, 100, 100]


def test_a_tasks_keys_are_its_own_samples() -> None:
    assert all(TASKS[index] == task for batch in run(make(), 5) for index, task, _ in batch)


@settings(max_examples=200)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(lambda q: sum(q) > 0),
    st.integers(1, 50),
    st.integers(0, 2**40),
)
def test_every_batch_holds_its_share_within_one(
    quotas: list[int], batch_size: int, seed: int
) -> None:
    order = stratify(quotas, batch_size, torch.Generator().manual_seed(seed))
    total = sum(quotas)
    assert order.bincount(minlength=len(quotas)).tolist() == quotas
    for batch in torch.split(order, batch_size):
        held = batch.bincount(minlength=len(quotas)).tolist()
        shares = [quota * len(batch) / total for quota in quotas]
        assert all(abs(n - share) < 1 for n, share in zip(held, shares, strict=True))


def test_no_sample_comes_again_before_its_task_is_used_up() -> None:
    sampler = make(num_samples=18, batch_size=4)
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        sampler.set_weights(torch.rand(3, generator=generator))
        for batch in draws(sampler):
            for index, task, _ in batch:
                seen[task].append(index)
    for task, size in ((0, 11), (1, 7), (2, 5)):
        passes = [seen[task][i : i + size] for i in range(0, len(seen[task]), size)]
        assert len(passes) > 2
        assert all(len(set(one)) == len(one) for one in passes)
        assert passes[0] != passes[1]


def test_generated_data_pairs_images_and_tasks_independently() -> None:
    sampler = QuotaSampler.for_generated(
        30, ["mild", "blur", "noise", "severe"], num_samples=20, batch_size=5, seed=1
    )
    sampler.set_weights({"severe": 0.1, "mild": 0.4, "noise": 0.2, "blur": 0.3})
    assert sampler.named_quotas == {"mild": 8, "blur": 6, "noise": 4, "severe": 2}
    batches = run(sampler, 300)
    images = [index for batch in batches for index, _, _ in batch]
    for start in range(0, len(images), 30):
        assert sorted(images[start : start + 30]) == list(range(30))
    table = torch.zeros(30, 4)
    for batch in batches:
        for index, task, _ in batch:
            table[index, task] += 1
    # Every image serves every task at its share: chi-square, 87 degrees of freedom, 6 sigma.
    expected = 200 * torch.tensor([0.4, 0.3, 0.2, 0.1])
    assert float(((table - expected) ** 2 / expected).sum()) < 87 + 6 * (2 * 87) ** 0.5


def test_generated_images_do_not_depend_on_the_weights() -> None:
    def images(weights: list[float]) -> list[int]:
        sampler = QuotaSampler.for_generated(9, 2, num_samples=12, batch_size=4)
        sampler.set_weights(weights)
        return [index for batch in run(sampler, 3) for index, _, _ in batch]

    assert images([1, 1]) == images([3, 1])


def test_order_is_seeded_and_shuffled() -> None:
    assert run(make(), 2) == run(make(), 2)
    assert run(make(), 1) != run(make(seed=4), 1)
    one, two = run(make(), 2)[:5], run(make(), 2)[5:]
    assert [[task for _, task, _ in batch] for batch in one] != [
        [task for _, task, _ in batch] for batch in two
    ]


def test_the_plan_can_be_read_beforehand() -> None:
    sampler = make()
    sampler.set_weights([3, 2, 1])
    plan = sampler.plan()
    assert len(plan) == len(sampler) == 5
    assert draws(plan.batch(step) for step in range(5)) == draws(sampler)


def test_a_short_last_batch() -> None:
    sampler = make(num_samples=18)
    batches = draws(sampler)
    assert len(sampler) == 5
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 2]
    assert sorted(counts(batches)) == [6, 6, 6]


# Weights at the boundary


def test_weights_take_effect_at_the_next_interval_only() -> None:
    for workers_see in (list, lambda sampler: list(sampler.track(loader(sampler, 0)))):
        sampler, plain = make(), make()
        before = sampler.quotas
        expected = draws(plain)
        got = []
        for step, batch in enumerate(sampler):
            got.append(batch)
            sampler.set_weights([step + 1.0, 1.0, 1.0])
            if step < 4:
                assert torch.equal(sampler.quotas, before)
        assert draws(got) == expected
        assert sampler.quotas.tolist()[0] > before.tolist()[0]
        workers_see(sampler)
        assert sampler.interval == 2


def test_weights_before_the_first_batch_count_at_once() -> None:
    sampler = make()
    sampler.set_weights([8, 1, 1])
    sampler.set_weights([1, 1, 8])
    assert sampler.quotas.tolist() == [2, 2, 16]


def test_refused_weights_leave_the_old_ones() -> None:
    sampler = make(names=["seg", "depth", "normal"])
    sampler.set_weights([2, 1, 1])
    before = sampler.state_dict()
    for weights, message in (
        ([1, -1, 1], "that of task 'depth' is -1"),
        ([1, 1, float("nan")], "that of task 'normal' is nan"),
        ([0, 0, 0], "not all be zero"),
        ([1, 1], r"each of the tasks \['seg', 'depth', 'normal'\], got 2"),
        ({"seg": 1.0, "depth": 1.0}, r"of the tasks \['seg', 'depth', 'normal'\], got"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler.set_weights(weights)
    assert sampler.state_dict() == before


# Loaders


def loader(sampler: QuotaSampler, workers: int, **options: Any) -> DataLoader[Tensor]:
    return DataLoader(
        Keys(), batch_sampler=sampler, num_workers=workers, persistent_workers=workers > 0,
        generator=torch.Generator(), **options,
    )  # fmt: skip


@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_give_the_plan_with_any_number_of_workers(workers: int, tracked: bool) -> None:
    reference, sampler = make(), make()
    data = loader(sampler, workers)
    assert len(data) == 5
    for weights in ([1, 1, 1], [4, 2, 1], [1, 1, 8]):
        reference.set_weights(weights)
        sampler.set_weights(weights)
        got = loaded(sampler.track(data) if tracked else data)
        assert got == draws(reference)
    assert sampler.state_dict() == reference.state_dict()


def interrupted(
    first: QuotaSampler,
    second: QuotaSampler,
    stop: int,
    *,
    workers: tuple[int, int],
    tracked: bool,
) -> Iterator[list[Draw]]:
    """What a loop takes that is killed after `stop` batches and resumed, two intervals in all."""
    data = loader(first, workers[0])
    taken = 0
    while taken < stop:
        for batch in first.track(data) if tracked else data:
            yield loaded([batch])[0]
            taken += 1
            if taken == stop:
                state = through_a_file(first.state_dict())
                break
        else:
            first.set_weights([3, 1, 1])
    del data
    second.load_state_dict(state)
    data = loader(second, workers[1])
    while second.interval < 2:
        assert len(second) == 5 - second.consumed
        yield from loaded(second.track(data) if tracked else data)
        second.set_weights([3, 1, 1])


def uninterrupted() -> list[list[Draw]]:
    sampler = make()
    batches = draws(sampler)
    sampler.set_weights([3, 1, 1])
    return batches + draws(sampler)


@pytest.mark.parametrize("stop", range(1, 10))
@pytest.mark.parametrize("tracked", [True, False])
def test_resume_is_exact_without_workers(stop: int, tracked: bool) -> None:
    got = list(interrupted(make(), make(), stop, workers=(0, 0), tracked=tracked))
    assert got == uninterrupted()


@pytest.mark.parametrize(("stop", "workers"), [(2, (2, 0)), (5, (2, 1)), (8, (0, 2))])
def test_resume_is_exact_with_another_number_of_workers(
    stop: int, workers: tuple[int, int]
) -> None:
    got = list(interrupted(make(), make(), stop, workers=workers, tracked=True))
    assert got == uninterrupted()


def test_a_loop_that_breaks_off_goes_on_where_it_stopped() -> None:
    sampler = make()
    data = loader(sampler, 2)
    got = []
    for batch in sampler.track(data):
        got.append(batch)
        if len(got) == 2:
            break
    assert sampler.consumed == 2
    assert len(sampler) == len(data) == 3
    got.extend(sampler.track(data))
    assert loaded(got) == draws(make())
    assert (sampler.interval, len(sampler)) == (1, 5)


def test_a_loop_that_counts_to_the_length_need_not_ask_for_the_end() -> None:
    sampler = make()
    got = []
    for _ in range(2):
        assert len(sampler) == 5
        iterator = iter(sampler)
        got += draws(next(iterator) for _ in range(len(sampler)))
    assert got == run(make(), 2)
    sampler.set_weights([1, 2, 7])
    assert sampler.quotas.tolist()[2] > 10


def test_a_resume_after_the_last_batch_ends_its_interval_first() -> None:
    sampler = make()
    iterator = iter(sampler)
    for _ in range(5):
        next(iterator)
    resumed = make()
    resumed.load_state_dict(sampler.state_dict())
    assert len(resumed) == 0
    assert list(resumed.track(loader(resumed, 0))) == []
    assert resumed.interval == 1
    assert draws(resumed) == run(make(), 2)[5:]


def test_pending_weights_and_the_carry_are_in_the_state() -> None:
    one = make(num_samples=10)
    two = make(num_samples=10)
    list(one)
    iterator = iter(one)
    next(iterator)
    one.set_weights([5, 3, 1])
    two.load_state_dict(through_a_file(one.state_dict()))
    assert two.state_dict() == one.state_dict()
    rest = draws(iterator)
    assert draws(two) == rest
    for _ in range(3):
        assert torch.equal(one.quotas, two.quotas)
        assert draws(one) == draws(two)


def test_weights_set_after_a_resume_wait_for_the_next_interval() -> None:
    sampler = make()
    next(iter(sampler))
    resumed = make()
    resumed.load_state_dict(sampler.state_dict())
    resumed.set_weights([8, 1, 1])
    assert draws(resumed) == run(make(), 1)[1:]
    assert resumed.quotas.tolist()[0] > 14


def test_states_of_other_samplers_are_refused() -> None:
    state = make(names=["a", "b", "c"]).state_dict()
    for other, message in (
        (make(names=["a", "c", "b"]), r"its names is \['a', 'b', 'c'\], here it is \['a', 'c'"),
        (make(names=["a", "b", "c"], seed=4), "its seed is 3, here it is 4"),
        (make(names=["a", "b", "c"], num_samples=24), "its num_samples is 20, here it is 24"),
        (make(names=["a", "b", "c"], batch_size=5), "its batch_size is 4, here it is 5"),
        (
            QuotaSampler(
                [*TASKS[:-1], 0], num_samples=20, batch_size=4, seed=3, names=["a", "b", "c"]
            ),
            "its dataset is '23 samples",
        ),
        (
            QuotaSampler.for_generated(23, ["a", "b", "c"], num_samples=20, batch_size=4, seed=3),
            "here it is '23 samples for every task'",
        ),
    ):
        before = other.state_dict()
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)
        assert other.state_dict() == before
    with pytest.raises(ValueError, match="must hold the entries"):
        make().load_state_dict({"seed": 3})


def test_an_old_iteration_may_not_go_on() -> None:
    sampler = make()
    old = iter(sampler)
    next(old)
    next(iter(sampler))
    with pytest.raises(RuntimeError, match="another one began"):
        next(old)
    tracked = sampler.track(loader(sampler, 0))
    next(tracked)
    sampler.load_state_dict(make().state_dict())
    with pytest.raises(RuntimeError, match="a state was loaded"):
        next(tracked)


def test_track_notices_loaders_that_are_not_the_samplers() -> None:
    sampler = make()
    with pytest.raises(ValueError, match="must draw from this sampler"):
        list(sampler.track([1, 2]))
    with pytest.raises(ValueError, match="must draw from this sampler"):
        list(sampler.track([]))
    assert sampler.state_dict() == make().state_dict()
    half = (batch for step, batch in enumerate(sampler) if step % 2)
    with pytest.raises(RuntimeError, match="2 of the 5 batches"):
        list(sampler.track(half))

    def padded() -> Iterator[int]:
        next(iter(other))
        yield from range(6)

    other = make()
    with pytest.raises(RuntimeError, match="more than the 5 batches"):
        list(other.track(padded()))


# Ranks


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_out_the_same_global_batches(world_size: int) -> None:
    single = run(make(), 3)
    ranks = [run(make(rank=rank, world_size=world_size), 3) for rank in range(world_size)]
    for step, batch in enumerate(single):
        parts = [ranks[rank][step] for rank in range(world_size)]
        assert {len(part) for part in parts} == {4 // world_size}
        assert [key for part in parts for key in part] == batch


def test_no_rank_is_starved_of_a_task() -> None:
    sampler = [
        QuotaSampler.for_generated(1000, 2, num_samples=1000, batch_size=4, rank=r, world_size=2)
        for r in range(2)
    ]
    for rank in sampler:
        assert min(counts(draws(rank), 2)) > 200


def test_the_number_of_ranks_may_change_at_a_resume() -> None:
    got = []
    first = [make(rank=rank, world_size=2) for rank in range(2)]
    iterators = [iter(sampler) for sampler in first]
    for _ in range(3):
        got.append([key for iterator in iterators for key in draws([next(iterator)])[0]])
    second = [make(rank=rank, world_size=4) for rank in range(4)]
    for sampler in second:
        sampler.load_state_dict(through_a_file(first[1].state_dict()))
    for parts in zip(*(draws(sampler) for sampler in second), strict=True):
        got.append([key for part in parts for key in part])
    assert got == run(make(), 1)


def test_ranks_come_from_torch_distributed_when_iterating(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = make()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert draws(sampler) == draws(make(rank=1, world_size=2))
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="`batch_size` is 4, `world_size` is 3"):
        next(iter(sampler))


# Refusals


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "`num_samples` must be at least 1, got 0"),
        ({"batch_size": 2.0}, TypeError, r"`batch_size` must be an integer, got 2\.0"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0, got -1"),
        ({"minimum": 7}, ValueError, "`minimum` = 7 of each of the 3 tasks, got 20"),
        ({"rank": 0}, ValueError, "go together"),
        ({"rank": 2, "world_size": 2}, ValueError, "below `world_size` = 2, got 2"),
        ({"rank": 0, "world_size": 3}, ValueError, "`batch_size` is 4, `world_size` is 3"),
        ({"num_samples": 19, "rank": 0, "world_size": 2}, ValueError, "is 3, `world_size` is 2"),
        ({"names": ["a", "b"]}, ValueError, "ids from 0 to 1, got 2"),
        ({"names": ["a", "b", "c", "d"]}, ValueError, "none of 'd'"),
        ({"names": ["a", "b", "a"]}, ValueError, "different from each other"),
        ({"names": "abc"}, TypeError, r"write \['abc'\]"),
    ],
)
def test_refused_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("tasks", "error", "message"),
    [
        ([0, -1], ValueError, "got -1"),
        ([0.0, 1.0], TypeError, "torch.float32"),
        ([], ValueError, r"shape \[D\]"),
        ([[0, 1]], ValueError, r"got \[1, 2\]"),
        ([0, 2], ValueError, "none of '1'"),
    ],
)
def test_refused_labels(tasks: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        QuotaSampler(tasks, num_samples=4, batch_size=2)


def test_labels_may_be_arrays_or_tensors() -> None:
    expected = run(make(), 1)
    kinds: tuple[Any, ...] = (np.array(TASKS), torch.tensor(TASKS).int(), tuple(TASKS))
    for labels in kinds:
        sampler = QuotaSampler(labels, num_samples=20, batch_size=4, seed=3)
        assert draws(sampler) == expected
