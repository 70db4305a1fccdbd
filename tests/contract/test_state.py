"""Stopping, copying, loading and refusing leave no trace in the training."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlweight import DBMTL, DWA, RLW, FairGrad, LogLosses, Strategy
from tests.contract.strategies import (
    CASES,
    TASKS,
    Case,
    Network,
    batch,
    losses_of,
    metrics_of,
    same_bits,
    snapshot,
    solve,
)

PRESENT = [("a", "b", "c"), ("b", "c"), ("a", "b", "c"), ("c",), ("a", "c"), ("a", "b", "c")]


class Run:
    """A training whose every step is a function of its number."""

    def __init__(self, case: Case, build: Any = Network) -> None:
        self.network = build()
        self.strategy = case.build(TASKS)
        self.optimizer = torch.optim.Adam(self.network.parameters(), 1e-2, fused=True)
        self.weights: list[Tensor] = []

    def train(self, start: int, end: int, absent: bool = True) -> None:
        for step in range(start, end):
            _, losses = losses_of(self.network, batch(step))
            present = PRESENT[step % len(PRESENT)] if absent else TASKS
            self.optimizer.zero_grad()
            self.strategy({task: losses[task] for task in present}).backward()
            self.optimizer.step()
            self.weights.append(self.strategy.weights.clone())
            if step % 4 == 3:
                metrics = metrics_of(TASKS if step == 3 else present, 0.01 * (step % 12))
                self.strategy.end_epoch(metrics)

    def save(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "strategy": self.strategy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.strategy.load_state_dict(state["strategy"])
        self.optimizer.load_state_dict(state["optimizer"])


class Branching(Network):
    """Tasks "a" and "b" share a block that "c" doesn't use; all share the trunk."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.block = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        features = self.trunk(x)
        branch = self.block(features).relu()
        inputs = {"a": branch, "b": branch, "c": features}
        return features, {task: head(inputs[task]) for task, head in self.heads.items()}


@pytest.mark.parametrize(("build", "cut"), [(Network, 5), (Branching, 8)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_resume_is_exact(case: Case, cut: int, build: Any, tmp_path: Path) -> None:
    """Train 12 steps; or train, save, load into a fresh run, train the rest: the same bits."""
    whole = Run(case, build)
    whole.train(0, 12)

    first = Run(case, build)
    first.train(0, cut)
    # The step after each cut has all tasks; for the others, see below.
    torch.save(first.save(), tmp_path / "checkpoint.pt")
    second = Run(case, build)
    second.load(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    second.train(cut, 12)

    assert same_bits(
        dict(enumerate(first.weights + second.weights)), dict(enumerate(whole.weights))
    )
    assert same_bits(second.network.state_dict(), whole.network.state_dict())
    assert same_bits(snapshot(second.strategy), snapshot(whole.strategy))


@pytest.mark.parametrize("case", [case for case in CASES if case.gradients], ids=str)
def test_resume_at_a_step_with_absent_tasks(case: Case) -> None:
    """What was shared can't be seen in a step that shows only a part: said, never guessed."""
    whole = Run(case, Branching)
    whole.train(0, 3)
    first = Run(case, Branching)
    first.train(0, 1)
    second = Run(case, Branching)
    second.load(copy.deepcopy(first.save()))
    before = snapshot(second.strategy)
    said = ""
    try:
        second.train(1, 3)  # "b" and "c" alone: the block seems to be that of "b"
    except ValueError as error:
        said = str(error)
    if said:
        assert "every task" in said  # the ways out
        assert "shared=" in said
        assert same_bits(snapshot(second.strategy), before)
        second.train(2, 3)
        return
    assert same_bits(second.network.state_dict(), whole.network.state_dict())
    assert same_bits(snapshot(second.strategy), snapshot(whole.strategy))


@pytest.mark.parametrize("case", [case for case in CASES if case.gradients], ids=str)
def test_resume_of_a_run_that_began_with_some_tasks(case: Case) -> None:
    """What is shared was found bit by bit, and is found at once, in another order, after the load.

    The order is a matter of rounding, but for what is remembered, or drawn, by place.
    """
    whole, first, second = (Run(case, Branching) for _ in range(3))
    whole.train(1, 9)  # step 1 has "b" and "c" alone
    first.train(1, 5)
    second.load(copy.deepcopy(first.save()))
    if case.ordered:
        with pytest.raises(ValueError, match="give `shared=encoder"):
            second.train(5, 9)
        return
    second.train(5, 9)  # step 5 has all
    for name, tensor in whole.network.state_dict().items():
        torch.testing.assert_close(second.network.state_dict()[name], tensor, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(second.strategy.weights, whole.strategy.weights)


@pytest.mark.parametrize("case", [case for case in CASES if case.gradients], ids=str)
def test_resume_with_shared_parameters_given(case: Case) -> None:
    """The way out: then the first step after a load may hold any tasks."""

    def train(run: Run, start: int, end: int) -> None:
        shared = [*run.network.trunk.parameters(), *run.network.block.parameters()]
        for step in range(start, end):
            _, losses = losses_of(run.network, batch(step))
            run.optimizer.zero_grad()
            present = {task: losses[task] for task in PRESENT[step % len(PRESENT)]}
            run.strategy(present, shared=shared).backward()
            run.optimizer.step()

    whole, first, second = (Run(case, Branching) for _ in range(3))
    train(whole, 0, 6)
    train(first, 0, 1)
    second.load(copy.deepcopy(first.save()))
    train(second, 1, 6)
    assert same_bits(second.network.state_dict(), whole.network.state_dict())
    assert same_bits(snapshot(second.strategy), snapshot(whole.strategy))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_load_into_a_used_strategy(case: Case) -> None:
    run = Run(case)
    run.train(0, 3)
    saved = copy.deepcopy(run.save())
    run.train(3, 9)
    end = copy.deepcopy(run.save())
    run.load(saved)
    assert same_bits(snapshot(run.strategy), saved["strategy"])
    run.train(3, 9)
    assert same_bits(snapshot(run.strategy), end["strategy"])
    assert same_bits(run.network.state_dict(), end["network"])


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "save"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_copies_go_their_own_way(case: Case, way: str) -> None:
    run = Run(case)
    run.train(0, 5, absent=False)
    if way == "deepcopy":
        twin = copy.deepcopy(run.strategy)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(run.strategy))
    else:
        file = io.BytesIO()
        torch.save(run.strategy, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    before = snapshot(run.strategy)
    other = Run(case)
    other.load(copy.deepcopy(run.save()))
    other.strategy = twin
    other.train(5, 10, absent=False)
    assert same_bits(snapshot(run.strategy), before), "the copy writes into the original"
    run.train(5, 10, absent=False)
    assert same_bits(snapshot(run.strategy), snapshot(twin))
    assert same_bits(run.network.state_dict(), other.network.state_dict())


@pytest.mark.parametrize("way", ["load", "deepcopy", "pickle"])
@pytest.mark.parametrize("first", [("a",), ("b", "c")], ids="-".join)
def test_what_was_shared_is_missed_after_a_resume(way: str, first: tuple[str, ...]) -> None:
    """A batch of few tasks does not show it again: it is refused, and not weighed otherwise."""
    one, two = (torch.ones(2, requires_grad=True) for _ in range(2))

    def losses(present: tuple[str, ...]) -> dict[str, Tensor]:
        every = {
            "a": one.square().sum() + two.sum(),
            "b": two.square().sum(),
            "c": (one.sum() - 3).square() + 1,
        }
        return {task: every[task] for task in present}

    strategy = FairGrad(TASKS)
    strategy(losses(TASKS)).backward()
    if way == "load":
        again = FairGrad(TASKS)
        again.load_state_dict(strategy.state_dict())
    else:
        again = (
            copy.deepcopy(strategy) if way == "deepcopy" else pickle.loads(pickle.dumps(strategy))
        )
    with pytest.raises(ValueError, match="do not show again"):
        again(losses(first))
    again(losses(TASKS))
    again(losses(first))
    assert torch.equal(again.weights, _after(strategy, losses(TASKS), losses(first)))


def _after(strategy: Strategy, *steps: dict[str, Tensor]) -> Tensor:
    for losses in steps:
        strategy(losses)
    return strategy.weights


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_saved_is_not_written_to_later(case: Case) -> None:
    """`state_dict()` without a copy stays what it was: state is rebound, not overwritten."""
    run = Run(case)
    run.train(0, 3)
    live, copied = run.strategy.state_dict(), snapshot(run.strategy)
    run.train(3, 8)
    assert same_bits(dict(live), copied)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(
    "bad", ["nan", "detached", "none", "vector", "unknown", "metrics", "counts", "shared"]
)
def test_a_refused_call_leaves_no_trace(case: Case, bad: str) -> None:
    run = Run(case)
    run.train(0, 5)
    before = snapshot(run.strategy)
    present = run.strategy.present
    _, losses = losses_of(run.network, batch(50))
    spoilt: dict[str, Any] = {
        "nan": {**losses, "c": losses["c"] * torch.nan},
        "detached": {**losses, "c": losses["c"].detach()},
        "none": {**losses, "c": None},
        "vector": {**losses, "c": losses["c"] * torch.ones(3)},
        "unknown": {**losses, "x": losses["c"]},
    }
    if bad == "metrics":
        for metrics in ({"a": 0.5, "b": torch.nan, "c": 0.5}, {"x": 1.0}, [0.5, 0.5], "abc"):
            if not case.metrics:
                continue
            with pytest.raises((ValueError, TypeError)):
                run.strategy.end_epoch(metrics)
            assert same_bits(snapshot(run.strategy), before)
        return
    if bad == "shared":
        if not case.gradients:
            return
        stranger = torch.zeros(3, requires_grad=True)
        with pytest.raises(ValueError, match="shared"):
            run.strategy(losses, shared=[stranger])
    elif bad == "counts":
        with pytest.raises((ValueError, TypeError), match="counts"):
            run.strategy(losses, counts={"x": 3})
    else:
        with pytest.raises((ValueError, TypeError)):
            run.strategy(spoilt[bad])
    assert same_bits(snapshot(run.strategy), before)
    assert run.strategy.present == present


@pytest.mark.parametrize("case", [case for case in CASES if case.gradients], ids=str)
def test_a_backward_that_breaks_leaves_no_trace(case: Case) -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            raise RuntimeError("broken")

    run = Run(case)
    for start, end in ((0, 3), (3, 6)):  # in the second, `Every` goes by the weights it has
        run.train(start, end)
        before = snapshot(run.strategy)
        _, losses = losses_of(run.network, batch(50))
        losses["c"] = Broken.apply(losses["c"])
        with pytest.raises(RuntimeError, match="broken"):
            run.strategy(losses)
        assert same_bits(snapshot(run.strategy), before)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_refused_load_leaves_no_trace(case: Case) -> None:
    run = Run(case)
    run.train(0, 5)
    good = copy.deepcopy(run.strategy.state_dict())
    run.train(5, 7)
    before = snapshot(run.strategy)
    for key in ("weights", "_extra_state", "epoch_weights.sums"):
        broken = copy.deepcopy(good)
        del broken[key]
        with pytest.raises((RuntimeError, ValueError)):
            run.strategy.load_state_dict(broken)
        assert same_bits(snapshot(run.strategy), before), f"half of a state without {key} was taken"
    broken = copy.deepcopy(good) | {"stranger": torch.zeros(1)}
    for key, extra in broken.items():
        if key.endswith("_extra_state") and "shared" in extra:
            extra["shared"] = [[7]]  # of another network
    with pytest.raises((RuntimeError, ValueError)):
        run.strategy.load_state_dict(broken)
    assert same_bits(snapshot(run.strategy), before), "a state with a stranger was taken"
    run.train(7, 8)


def test_the_state_of_another_strategy_is_refused() -> None:
    for case in CASES:
        other: Strategy = RLW(TASKS) if "dwa" in case.name else DWA(TASKS)
        for saved in (other.state_dict(), LogLosses(other).state_dict()):
            strategy = case.build(TASKS)
            before = snapshot(strategy)
            with pytest.raises((ValueError, RuntimeError)):
                strategy.load_state_dict(saved)
            assert same_bits(snapshot(strategy), before), case.name


@pytest.fixture
def young_heap() -> Iterator[None]:
    """Sets apart what was there before, so that the collector looks at the test's objects alone."""
    gc.collect(0)
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("young_heap")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_memory_does_not_grow(case: Case) -> None:
    run = Run(case)
    run.train(0, 12)
    gc.collect()

    def tensors() -> int:
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    before, size = tensors(), len(pickle.dumps(run.strategy))
    run.weights.clear()
    kept = len(gc.get_objects())
    run.train(12, 36)
    run.weights.clear()
    gc.collect()
    assert tensors() <= before + 4
    assert len(gc.get_objects()) <= kept + 100
    assert len(pickle.dumps(run.strategy)) <= size + 64


@pytest.mark.usefixtures("young_heap")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_graph_dies_with_the_scalar(case: Case) -> None:
    gc.collect()
    gc.disable()
    try:
        run = Run(case)
        run.train(0, 4)
        features, losses = losses_of(run.network, batch(9))
        total = run.strategy(losses)
        graph, scalar = weakref.ref(features), weakref.ref(losses["a"])
        total.backward()
        del features, losses, total
        assert graph() is None, "the strategy keeps the graph alive"
        assert scalar() is None
        # And without a backward, as in a step that is skipped.
        features, losses = losses_of(run.network, batch(10))
        total = run.strategy(losses)
        graph = weakref.ref(features)
        del features, losses, total
        assert graph() is None
        network = weakref.ref(next(run.network.parameters()))
        strategy = run.strategy
        del run
        gc.collect()
        assert network() is None, "the strategy keeps the network alive"
        assert strategy.weights.isfinite().all()
    finally:
        gc.enable()


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "to_half"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_cast_of_the_parent_keeps_the_precision(case: Case, cast: str) -> None:
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = Network()
            self.strategy = case.build(TASKS)

    parent = Parent()
    solve(parent.strategy, torch.eye(3))
    before = snapshot(parent.strategy)
    if cast == "to_half":
        parent.to(torch.float16)
    else:
        getattr(parent, cast)()
    after = snapshot(parent.strategy)
    assert same_bits(after, before)
    assert parent.network.trunk[0].weight.dtype != torch.float32
    parent.load_state_dict(parent.state_dict())  # within a parent the state is one of its keys


def test_db_mtl_saves_its_averages() -> None:
    strategy = DBMTL(TASKS)
    solve(strategy, torch.eye(3))
    assert strategy.state_dict()["averages"].shape == (3, 3)
    fresh = DBMTL(TASKS)
    fresh.load_state_dict(strategy.state_dict())
    assert same_bits(snapshot(fresh), snapshot(strategy))
    d, _ = solve(DBMTL(TASKS), torch.eye(3) * 2)
    again, _ = solve(fresh, torch.eye(3) * 2)
    assert not torch.equal(d, again)


@pytest.mark.parametrize("name", ["step", "epoch"])
def test_counters(name: str) -> None:
    strategy: Strategy = RLW(TASKS)
    _, losses = losses_of(Network(), batch())
    for _ in range(3):
        strategy(losses)
    strategy.end_epoch()
    assert (strategy.step, strategy.epoch) == (3, 1)
    strategy.eval()
    strategy({task: F.relu(loss) for task, loss in losses.items()})
    assert (strategy.step, strategy.epoch) == (3, 1)
