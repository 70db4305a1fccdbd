from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from mtlweight import FAMO, OptionError
from mtlweight.late_errors import LateErrors
from tests.contract.strategies import (
    TASKS,
    Network,
    batch,
    losses_of,
    plane,
    same_bits,
    snapshot,
    solve,
)

J = torch.eye(3).double()
BEFORE = torch.tensor([4.0, 1.0, 1.0]).double()
AFTER = torch.tensor([2.0, 0.5, 1.0]).double()
GRADIENT = torch.tensor([0.077016, 0.077016, -0.154033])


def last_gradient(strategy: FAMO) -> Tensor:
    """What the logits' Adam was given in its first step, from its first moment."""
    return strategy.adam.first / (1 - strategy.adam.betas[0])


def test_the_weights_of_a_step() -> None:
    strategy = FAMO(3)
    theta, losses = plane(J, AFTER)
    total = strategy(losses)
    total.backward()
    assert total.item() == pytest.approx(0, abs=1e-7)
    wanted = torch.tensor([0.142857, 0.571429, 0.285714]).double()
    torch.testing.assert_close(strategy.weights.double(), wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(theta.grad, wanted, rtol=0, atol=1e-6)
    c = 3 * strategy.weights.double() * AFTER
    torch.testing.assert_close(c, torch.full_like(c, 0.857143), rtol=0, atol=1e-6)


def test_the_value_is_that_of_the_paper() -> None:
    losses = torch.tensor([4.0, 1.0, 1.0]).double()
    total = FAMO(3)(plane(J, losses)[1])
    c = 1 / (1 / (3 * losses)).sum()
    assert total.item() == pytest.approx((c * losses.log().sum() / 3).item())


@pytest.mark.parametrize("same_batch", [True, False])
def test_the_gradient_of_the_logits(same_batch: bool) -> None:
    strategy = FAMO(3)
    solve(strategy, J, BEFORE)
    if same_batch:
        strategy.after_step(AFTER)
    else:
        solve(strategy, J, AFTER)
    torch.testing.assert_close(last_gradient(strategy), GRADIENT, rtol=0, atol=1e-6)
    # Adam's first step is as long as its learning rate: against the tasks that fell.
    assert strategy.logits.tolist() == pytest.approx([-0.025, -0.025, 0.025], abs=1e-6)


@pytest.mark.parametrize("same_batch", [True, False])
def test_an_equal_relative_decrease_teaches_nothing(same_batch: bool) -> None:
    strategy = FAMO(3)
    values = torch.tensor([3.0, 1e-3, 700.0])
    for _ in range(5):
        solve(strategy, J, values)
        values = values / 2
        if same_batch:
            strategy.after_step(values)
    assert not strategy.logits.any()
    strategy = FAMO(3)
    for _ in range(5):
        solve(strategy, J, [3.0, 1e-3, 700.0])
    assert not strategy.logits.any()


def test_after_step_takes_the_place_of_the_next_batch() -> None:
    strategy = FAMO(3)
    solve(strategy, J, BEFORE)
    strategy.after_step(AFTER)
    logits = strategy.logits
    solve(strategy, J, [1.0, 5.0, 9.0])  # another batch: it tells nothing of the step
    assert torch.equal(strategy.logits, logits)
    solve(strategy, J, [1.0, 1.0, 1.0])  # and now it does
    assert not torch.equal(strategy.logits, logits)


@pytest.mark.parametrize("same_batch", [True, False])
@pytest.mark.parametrize("bounds", [None, [0.1, 0.0, -3.0]])
@pytest.mark.parametrize("weight_decay", [1e-3, 0.5])
def test_famo_of_torchjd(same_batch: bool, bounds: Any, weight_decay: float) -> None:
    scalarization = pytest.importorskip("torchjd.scalarization")
    peer = scalarization.FAMO(
        3,
        None if bounds is None else torch.tensor(bounds),
        lr=0.05,
        weight_decay=weight_decay,
    )
    strategy = FAMO(3, learning_rate=0.05, weight_decay=weight_decay, lower_bounds=bounds)
    generator = torch.Generator().manual_seed(0)
    for step in range(40):
        values = 0.2 + torch.rand(3, generator=generator)
        after = values * (0.5 + torch.rand(3, generator=generator))
        if step == 20:
            values[1] *= 1e6  # such changes are within the range that Adam takes
        if step and not same_batch:
            peer.update(values)
        leaf = values.clone().requires_grad_()
        total = peer(leaf)
        total.backward()
        ours, losses = strategy, plane(torch.eye(3), values)[1]
        assert ours(losses).item() == pytest.approx(total.item(), rel=1e-4, abs=1e-5)
        torch.testing.assert_close(strategy.weights, leaf.grad, rtol=1e-4, atol=1e-6)
        if same_batch:
            peer.update(after)
            strategy.after_step(after)
    assert peer._w.abs().max() > 0.01
    torch.testing.assert_close(strategy.logits, peer._w.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["tensor", "list", "mapping", "backwards", "attached"])
def test_after_step_takes_what_a_call_takes(form: str) -> None:
    strategy = FAMO(TASKS)
    solve(strategy, J, BEFORE)
    named = dict(zip(TASKS, AFTER.unbind(), strict=True))
    given: Any = {
        "tensor": AFTER,
        "list": list(AFTER.unbind()),
        "mapping": named,
        "backwards": dict(reversed(named.items())),
        "attached": plane(J, AFTER)[1],
    }[form]
    strategy.after_step(given, counts=dict.fromkeys(TASKS, 4))
    torch.testing.assert_close(last_gradient(strategy), GRADIENT, rtol=0, atol=1e-6)
    assert not strategy.logits.requires_grad


@pytest.mark.parametrize("same_batch", [True, False])
def test_a_task_that_is_in_one_of_two_sets_learns_nothing(same_batch: bool) -> None:
    strategy, pair = FAMO(TASKS), FAMO(("a", "b"))
    theta = torch.ones((), requires_grad=True)

    def call(strategy: FAMO, losses: Mapping[str, float]) -> None:
        strategy({task: theta * loss for task, loss in losses.items()})

    call(strategy, {"a": 4.0, "b": 1.0, "c": 1.0})
    call(pair, {"a": 4.0, "b": 1.0})
    later = {"a": 2.0, "b": 3.0}
    if same_batch:
        strategy.after_step({task: torch.tensor(loss) for task, loss in later.items()})
        pair.after_step({task: torch.tensor(loss) for task, loss in later.items()})
    else:
        call(strategy, later)
        call(pair, later)
    assert strategy.logits[2] == 0
    assert strategy.adam.counts.tolist() == [1, 1, 0]
    torch.testing.assert_close(strategy.logits[:2], pair.logits)
    assert strategy.logits[:2].all()
    if not same_batch:  # "c" comes back: it was not in the call before
        logits = strategy.logits
        call(strategy, {"c": 100.0, "a": 2.0})
        assert torch.equal(strategy.logits[1:], logits[1:])


def test_none_in_both_sets() -> None:
    strategy = FAMO(TASKS)
    theta = torch.ones((), requires_grad=True)
    for task in "abcabc":
        strategy({task: theta * 2})
        assert not strategy.logits.any()
        assert not strategy.adam.counts.any()


def test_a_task_that_is_not_compared_may_have_been_solved() -> None:
    """What its loss was long ago, over the zero that it is, is infinite."""
    strategy = FAMO(TASKS)
    theta = torch.ones((), requires_grad=True)
    for losses in ({"c": 5.0}, {"a": 0.0, "b": 0.0}, {"a": 0.0, "b": 1.0, "c": 0.0}):
        strategy({task: theta * loss for task, loss in losses.items()})
    assert strategy.logits.tolist() == pytest.approx([-0.025, 0.025, 0])
    assert strategy.named_weights == pytest.approx({"a": 0, "b": 1, "c": 0})


def test_the_task_that_falls_behind_gains_weight() -> None:
    strategy = FAMO(2)
    jacobian = torch.eye(2)
    for step in range(60):
        _, w = solve(strategy, jacobian, [0.9**step, 1.0])
        strategy.after_step(torch.tensor([0.9 ** (step + 1), 1.0]))
    shares = strategy.logits.softmax(0)
    assert shares[1] > 0.7
    assert w.sum() == pytest.approx(1)


def test_the_scale_of_one_task_does_not_turn_the_gradient() -> None:
    scale = torch.tensor([1.0, 1e5, 1.0]).double()
    plain, scaled = FAMO(3), FAMO(3)
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        values = 0.5 + torch.rand(3, generator=generator).double()
        d, _ = solve(plain, J, values)
        other, _ = solve(scaled, scale[:, None] * J, scale * values)
        torch.testing.assert_close(other / other.norm(), d / d.norm(), rtol=1e-4, atol=1e-5)


def test_bounds() -> None:
    strategy = FAMO(TASKS, lower_bounds={"c": -2.0, "a": 1.0, "b": 0.25})
    _, w = solve(strategy, J, [3.0, 0.75, -1.0])
    wanted = torch.tensor([0.142857, 0.571429, 0.285714]).double()
    torch.testing.assert_close(w, wanted, rtol=0, atol=1e-6)
    assert not strategy.nonnegative_losses
    with pytest.raises(OptionError, match="'c'"):
        FAMO(TASKS, lower_bounds={"a": 1.0, "b": 0.25})
    with pytest.raises(OptionError, match="nan"):
        FAMO(TASKS, lower_bounds=[0.0, 1.0, float("nan")])


@pytest.mark.parametrize("solved", [0.0, 1e-12, -1.0])
def test_a_solved_task_has_no_say_and_the_others_share(solved: float) -> None:
    bounds = None if solved >= 0 else [0.0, 0.0, -1.0]
    strategy = FAMO(3, lower_bounds=bounds)
    for step in range(4):
        total = strategy(plane(torch.eye(3), [2.0, 0.5, solved])[1])
        assert total.isfinite()
        assert strategy.weights[2] == 0
        assert strategy.weights.sum() == pytest.approx(1)
        strategy.after_step(torch.tensor([2.0 - 0.1 * step, 0.5, solved]))
        assert strategy.logits.isfinite().all()
    # A loss that falls to zero has fallen by a finite amount.
    strategy(plane(torch.eye(3), [2.0, 0.5, 1.0])[1])
    strategy.after_step(torch.tensor([2.0, 0.0, 1.0]))
    assert strategy.logits.isfinite().all()


def test_solved_tasks_alone_are_trained_by_their_shares() -> None:
    """Nothing stops because a bound was too high."""
    strategy = FAMO(3, lower_bounds=[1.0, 1.0, 1.0])
    solve(strategy, J, [3.0, 2.0, 2.0])
    strategy.after_step(torch.tensor([2.0, 2.0, 2.0]))
    z = strategy.logits.softmax(0)
    total = strategy(plane(J, [0.5, 0.2, 1.0])[1])
    torch.testing.assert_close(strategy.weights, z)
    assert total.item() == pytest.approx((z * torch.tensor([0.5, 0.2, 1.0])).sum().item())


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"a": 1.0, "b": float("nan"), "c": 1.0}, "'b' is nan"),
        ({"a": 1.0, "b": float("inf"), "c": 1.0}, "'b' is inf"),
        ({"a": 1.0, "b": -1.0, "c": 1.0}, "'b' is -1.0"),
        ({"a": 1.0, "x": 1.0}, "'x'"),
        ({}, "empty"),
    ],
)
def test_a_refused_after_step_leaves_no_trace(bad: dict[str, float], words: str) -> None:
    strategy, twin = FAMO(TASKS), FAMO(TASKS)
    for one in (strategy, twin):
        solve(one, J, BEFORE)
    before = snapshot(strategy)
    with pytest.raises(ValueError, match=words):
        strategy.after_step({task: torch.tensor(loss) for task, loss in bad.items()})
    with pytest.raises(TypeError, match=r"0\.5"):
        strategy.after_step([0.5, 0.5, 0.5])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="counts"):
        strategy.after_step(AFTER, counts={"a": 0})
    assert same_bits(snapshot(strategy), before)
    assert isinstance(strategy.present, slice)
    solve(strategy, J, AFTER)  # the next batch tells what it would have
    solve(twin, J, AFTER)
    assert same_bits(snapshot(strategy), snapshot(twin))


def test_after_step_follows_a_call() -> None:
    strategy = FAMO(3)
    with pytest.raises(RuntimeError, match="call strategy"):
        strategy.after_step(AFTER)
    solve(strategy, J, BEFORE)
    strategy.after_step(AFTER)
    before = snapshot(strategy)
    with pytest.raises(RuntimeError, match="call strategy"):
        strategy.after_step(AFTER)
    assert same_bits(snapshot(strategy), before)


def test_in_evaluation_it_learns_nothing() -> None:
    strategy = FAMO(3)
    solve(strategy, J, BEFORE)
    before = snapshot(strategy.eval())
    strategy.after_step(AFTER)
    assert same_bits(snapshot(strategy), before)
    strategy.train().after_step(AFTER)
    assert strategy.logits.any()


@pytest.mark.parametrize("cut", [3, 3.5])  # before and after the losses that follow the step
def test_resume_between_a_call_and_its_after_step(cut: float) -> None:
    def train(strategy: FAMO, start: float, end: float) -> None:
        for half in range(int(2 * start), int(2 * end)):
            values = 1 + torch.rand(3, generator=torch.Generator().manual_seed(half))
            if half % 2 == 0:
                solve(strategy, torch.eye(3), values)
            else:
                strategy.after_step(values)

    whole, first, second = FAMO(3), FAMO(3), FAMO(3)
    train(whole, 0, 6)
    train(first, 0, cut)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(second, cut, 6)
    assert same_bits(snapshot(second), snapshot(whole))


def test_what_is_not_finite_never_enters_the_logits_of_an_accelerator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There values are looked at late: a flag keeps them out meanwhile."""
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda self: False), raising=False)
    strategy = FAMO(3)
    solve(strategy, J, BEFORE)
    before = snapshot(strategy)
    for bad in (torch.nan, torch.inf, -1.0):
        strategy.after_step(torch.tensor([1.0, bad, 1.0]))
        for name in ("logits", "adam.first", "adam.second", "adam.counts"):
            assert same_bits(snapshot(strategy)[name], before[name])
        with pytest.raises(ValueError, match=f"'1' is {bad!r}"):
            strategy(plane(J, AFTER)[1])
        solve(strategy, J, BEFORE)
        before = snapshot(strategy)
    assert strategy.logits.isfinite().all()


def test_after_step_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device tensors have no values: whoever reads one fails."""
    monkeypatch.setattr(LateErrors, "watch", lambda *_: None)
    network = Network().to("meta")
    strategy = FAMO(TASKS).to("meta")
    x, targets = batch()
    data = (x.to("meta"), {task: y.to("meta") for task, y in targets.items()})
    for present in (TASKS, ("a", "c")):
        _, losses = losses_of(network, data)
        strategy(losses).backward()
        strategy.after_step({task: losses[task].detach() for task in present})
        assert strategy.logits.is_meta


def test_ranks_average_what_follows_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    one, strategy = FAMO(3), FAMO(3)
    for build in (one, strategy):
        solve(build, J, BEFORE)
    mine, theirs = torch.tensor([1.0, 0.5, 2.0]), torch.tensor([2.5, 1.5, 1.0])
    counts = {"0": 1, "1": 3, "2": 1}
    numbers = torch.tensor([3.0, 1.0, 1.0])
    others = torch.stack([theirs * numbers, numbers, torch.ones(3)])
    monkeypatch.setattr("mtlweight.distributed.world_size", lambda: 2)
    monkeypatch.setattr("mtlweight.distributed.sum_over_ranks", lambda x: x + others.to(x))
    strategy.after_step(mine, counts=counts)
    monkeypatch.undo()
    one.after_step(torch.tensor([8.5 / 4, 3.0 / 4, 1.5]))
    torch.testing.assert_close(strategy.logits, one.logits)


def test_nothing_keeps_the_graph() -> None:
    strategy = FAMO(3)
    theta, losses = plane(J, BEFORE)
    strategy(losses).backward()
    strategy.after_step(losses)
    assert all(not buffer.requires_grad for buffer in strategy.buffers())
    assert theta.grad is not None
