"""Inside a compiled training step: no break of the graph, and the numbers of the eager one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contract.strategies import (
    BY_NAME,
    OF_LOSSES,
    TASKS,
    Case,
    Network,
    batch,
    gradient_now,
    losses_of,
    metrics_of,
    same_bits,
    snapshot,
)

# What differentiates the network itself leaves the graph at one place: where it is called.
INSIDE = [case for case in OF_LOSSES if case.build(TASKS).in_graph]
LEAVING = ["pcgrad", "nash_mtl", "db_mtl", "log_mgda"]


class Loop:
    """A training loop whose step may be compiled."""

    def __init__(self, case: Case, **how: Any) -> None:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        self.network, self.strategy = Network(), case.build(TASKS)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1)
        self.step = torch.compile(self.total, **how) if how else self.total

    def total(self, data: tuple[Tensor, dict[str, Tensor]]) -> Tensor:
        total: Tensor = self.strategy(losses_of(self.network, data)[1])
        return total

    def train(self) -> list[Tensor]:
        totals = []
        for number in range(6):
            data = batch(number)
            self.optimizer.zero_grad()
            total = self.step(data)
            total.backward()
            self.optimizer.step()
            totals.append(total.detach())
            if number % 2:
                self.strategy.end_epoch(metrics_of(TASKS))
        return totals


@pytest.mark.parametrize("case", INSIDE, ids=str)
def test_a_compiled_step_is_the_eager_one(case: Case) -> None:
    compiled, eager = Loop(case, backend="eager", fullgraph=True), Loop(case)
    totals = compiled.train()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2, "a step is traced anew"
    for got, wanted in zip(totals, eager.train(), strict=True):
        torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(
        gradient_now(compiled.network.parameters()), gradient_now(eager.network.parameters())
    )
    torch.testing.assert_close(compiled.strategy.weights, eager.strategy.weights)
    assert compiled.strategy.step == eager.strategy.step == 6
    if case.name != "igb_v2":  # whose random policy magnifies what rounding leaves
        assert snapshot(compiled.strategy).keys() == snapshot(eager.strategy).keys()


@pytest.mark.parametrize("name", ["dwa", "famo", "focal_achievement", "uw"])
def test_through_the_compiler_of_gradients_too(name: str) -> None:
    compiled, eager = Loop(BY_NAME[name], backend="aot_eager", fullgraph=True), Loop(BY_NAME[name])
    for got, wanted in zip(compiled.train(), eager.train(), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", LEAVING)
def test_strategies_that_read_gradients_leave_the_graph_once(name: str) -> None:
    loop = Loop(BY_NAME[name])
    explained = torch._dynamo.explain(loop.total)(batch(0))  # type: ignore[no-untyped-call]
    assert len(explained.break_reasons) == 1
    assert "disable" in str(explained.break_reasons[0].reason)
    compiled, eager = Loop(BY_NAME[name], backend="eager"), Loop(BY_NAME[name])
    for got, wanted in zip(compiled.train(), eager.train(), strict=True):
        torch.testing.assert_close(got, wanted)


def test_bad_values_are_refused_inside_too() -> None:
    loop = Loop(BY_NAME["dwa"], backend="eager", fullgraph=True)
    loop.train()
    before = copy.deepcopy(snapshot(loop.strategy))
    x, targets = batch(0)
    with pytest.raises(ValueError, match="'b' is nan"):
        loop.step((x, targets | {"b": targets["b"] * torch.nan}))
    assert same_bits(snapshot(loop.strategy), before)


def test_a_copy_takes_steps_of_its_own() -> None:
    loop = Loop(BY_NAME["dwa"], backend="eager", fullgraph=True)
    original, loop.strategy = loop.strategy, copy.deepcopy(loop.strategy)
    loop.train()
    assert (original.step, loop.strategy.step) == (0, 6)


def test_in_evaluation_nothing_is_recorded_inside_either() -> None:
    loop = Loop(BY_NAME["dwa"], backend="eager", fullgraph=True)
    loop.train()
    loop.strategy.eval()
    before = copy.deepcopy(snapshot(loop.strategy))
    total = loop.step(batch(7))
    wanted = loop.total(batch(7))
    torch.testing.assert_close(total, wanted)
    assert same_bits(snapshot(loop.strategy), before)


def test_tasks_may_be_absent_from_a_compiled_step() -> None:
    compiled, eager = BY_NAME["famo"].build(TASKS), BY_NAME["famo"].build(TASKS)
    network, twin = Network(), Network()

    def step(strategy: Any, network: Network, data: tuple[Tensor, dict[str, Tensor]]) -> Tensor:
        losses = losses_of(network, data)[1]
        total: Tensor = strategy({"a": losses["a"], "c": losses["c"]})
        return total

    torch._dynamo.reset()
    made = torch.compile(step, backend="eager", fullgraph=True)
    for number in range(3):
        made(compiled, network, batch(number)).backward()
        step(eager, twin, batch(number)).backward()
    torch.testing.assert_close(gradient_now(network.parameters()), gradient_now(twin.parameters()))
