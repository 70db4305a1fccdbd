"""A step never waits for an accelerator; what it finds wrong there is said one step later."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mtlweight import UWO, Every, Smoothed, Strategy
from mtlweight.late_errors import LateErrors
from tests.contract.strategies import (
    BY_NAME,
    CASES,
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

NEVER_WAIT = [case for case in OF_LOSSES if not case.looks_ahead]


def presents() -> Iterator[tuple[str, ...]]:
    yield from (TASKS, ("a", "c"), TASKS)


class _NoWaitingCopies(TorchDispatchMode):
    """Refuses copies from the host that the host waits for."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.overloadpacket is torch.ops.aten._to_copy and out.is_meta and not args[0].is_meta:
            assert kwargs.get("non_blocking"), "a copy to the device waits for it"
        if func.overloadpacket is torch.ops.aten.copy_ and out.is_meta and not args[1].is_meta:
            assert args[2:] == (True,), "a copy to the device waits for it"
        return out


@pytest.mark.parametrize("case", NEVER_WAIT, ids=str)
def test_nothing_waits_for_a_copy(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.tensor(list, device=...)` copies so that the host waits."""
    make = torch.tensor

    def tensor(*args: Any, **kwargs: Any) -> Tensor:
        assert kwargs.get("device") is None, "torch.tensor(..., device=...) waits for the device"
        return make(*args, **kwargs)

    network = Network().to("meta")
    strategy = case.build(TASKS).to("meta")
    monkeypatch.setattr(torch, "tensor", tensor)
    for present in presents():
        x, targets = batch()
        _, losses = losses_of(
            network, (x.to("meta"), {t: y.to("meta") for t, y in targets.items()})
        )
        with _NoWaitingCopies():
            strategy({task: losses[task] for task in present}).backward()
    with _NoWaitingCopies():
        strategy.eval()({task: losses[task] for task in ("a", "c")})


@pytest.mark.parametrize("case", NEVER_WAIT, ids=str)
def test_a_run_without_values(case: Case) -> None:
    """On the meta device tensors have no values: whoever reads one fails."""
    network = Network().to("meta")
    strategy = case.build(TASKS).to("meta")
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for present in presents():
        x, targets = batch()
        _, losses = losses_of(
            network, (x.to("meta"), {t: y.to("meta") for t, y in targets.items()})
        )
        optimizer.zero_grad()
        total = strategy({task: losses[task] for task in present})
        total.backward()
        optimizer.step()
        assert total.is_meta
        assert strategy.weights.is_meta
        for name, value in strategy.state_dict().items():
            assert not isinstance(value, Tensor) or value.is_meta, name
    if not case.metrics:
        strategy.end_epoch()


@pytest.fixture
def pretended_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes tensors deny that they are on the host, so that values are checked late."""
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda self: False), raising=False)


class _NoWaiting(TorchDispatchMode):
    """Refuses what would make the host wait for a value of the device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket in (
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.is_nonzero,
            torch.ops.aten.nonzero,
            torch.ops.aten.equal,
        ):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("pretended_accelerator")
@pytest.mark.parametrize("case", NEVER_WAIT, ids=str)
def test_no_step_reads_a_value(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with values, which are there to be read."""
    watched: list[Tensor] = []
    monkeypatch.setattr(LateErrors, "watch", lambda self, step, good, *_: watched.append(good))
    network, strategy = Network(), case.build(TASKS)
    for step, present in enumerate(presents()):
        _, losses = losses_of(network, batch(step))
        with _NoWaiting():
            strategy({task: losses[task] for task in present}).backward()
        if not case.metrics:
            with _NoWaiting():
                strategy.end_epoch()
    assert len(watched) >= 3


class _Copy:
    """The event of a copy to the host that takes as long as the test wants."""

    arrived = False

    def query(self) -> bool:
        return self.arrived

    def synchronize(self) -> None:
        self.arrived = True


def _step(strategy: Strategy, network: Network, step: int, bad: float | None = None) -> Tensor:
    _, losses = losses_of(network, batch(step))
    if bad is not None:
        losses["b"] = losses["b"] * 0.0 + bad
    return strategy(losses)


@pytest.mark.usefixtures("pretended_accelerator")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30, -2.0])
@pytest.mark.parametrize("case", NEVER_WAIT, ids=str)
def test_a_bad_value_is_reported_a_step_later_and_kept_out(case: Case, bad: float) -> None:
    if bad == -2.0 and not case.nonnegative:
        return
    network, strategy, twin = Network(), case.build(TASKS), case.build(TASKS)
    for step in range(2):
        _step(strategy, network, step)
        _step(twin, network, step)
    before = snapshot(strategy)
    _step(strategy, network, 2, bad)  # not refused: nobody has looked yet
    after = snapshot(strategy)
    for name, value in before.items():
        if isinstance(value, Tensor):
            assert same_bits(after[name], value), f"{name} took in a bad value"
    with pytest.raises(ValueError, match=r"In step 2: .*'b'"):
        _step(strategy, network, 3)
    # The refused call was no step; the loop goes on as it likes.
    assert strategy.step == 3
    _step(strategy, network, 4)
    strategy.end_epoch(metrics_of(TASKS))
    assert strategy.weights.isfinite().all()


@pytest.mark.usefixtures("pretended_accelerator")
@pytest.mark.parametrize("case", NEVER_WAIT, ids=str)
def test_an_epoch_does_not_end_on_a_bad_step(case: Case) -> None:
    network, strategy = Network(), case.build(TASKS)
    _step(strategy, network, 0)
    _step(strategy, network, 1, torch.nan)
    with pytest.raises(ValueError, match=r"In step 1: .*'b' is nan"):
        strategy.end_epoch(metrics_of(TASKS))
    assert strategy.epoch == 0
    strategy.end_epoch(metrics_of(TASKS))
    assert strategy.epoch == 1


@pytest.mark.usefixtures("pretended_accelerator")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_good_values_are_weighed_as_on_the_host(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, strategy = Network(), case.build(TASKS)
    for step in range(3):
        _step(strategy, network, step).backward()
        strategy.end_epoch(metrics_of(TASKS))
    monkeypatch.undo()
    other, twin = Network(), case.build(TASKS)
    for step in range(3):
        _step(twin, other, step).backward()
        twin.end_epoch(metrics_of(TASKS))
    assert same_bits(snapshot(strategy), snapshot(twin))
    assert torch.equal(gradient_now(network.parameters()), gradient_now(other.parameters()))


@pytest.mark.usefixtures("pretended_accelerator")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_flags_do_not_pile_up(case: Case) -> None:
    """Each is read at the next step: a wrapper and what it wraps hold no more than one."""
    network, strategy = Network(), case.build(TASKS)
    for step in range(6):
        _step(strategy, network, step)
    for module in strategy.modules():
        if isinstance(module, Strategy):
            assert len(module.late_errors._watches) <= 1


@pytest.mark.usefixtures("pretended_accelerator")
@pytest.mark.parametrize("outer", [lambda every: every, lambda every: Smoothed(0.5, every)])
def test_weights_are_not_held_after_a_bad_computation(outer: Any) -> None:
    network, strategy = Network(), outer(Every(9, UWO(TASKS)))
    _step(strategy, network, 0, torch.nan)
    with pytest.raises(ValueError, match="nan"):
        _step(strategy, network, 1)
    _step(strategy, network, 2)
    twin = outer(Every(9, UWO(TASKS)))
    _step(twin, network, 2)
    assert torch.equal(strategy.weights, twin.weights)


@pytest.mark.usefixtures("pretended_accelerator")
def test_check_now_waits() -> None:
    for name in ("equal", "dwa", "gls"):
        strategy = BY_NAME[name].build(TASKS, check="now")
        before = snapshot(strategy)
        with pytest.raises(ValueError, match="'b' is nan"):
            _step(strategy, Network(), 0, torch.nan)
        assert same_bits(snapshot(strategy), before)


@pytest.mark.usefixtures("pretended_accelerator")
def test_a_flag_is_read_only_once_it_has_arrived() -> None:
    network, strategy = Network(), BY_NAME["dwa"].build(TASKS)
    copied: Any = _Copy()
    _step(strategy, network, 0, torch.nan)
    strategy.late_errors._watches[-1].copied = copied
    _step(strategy, network, 1)
    _step(strategy, network, 2)  # not there yet: no step waits
    copied.arrived = True
    with pytest.raises(ValueError, match="In step 0"):
        _step(strategy, network, 3)


@pytest.mark.usefixtures("pretended_accelerator")
def test_a_load_forgets_what_was_wrong_before() -> None:
    network, strategy = Network(), BY_NAME["dwa"].build(TASKS)
    saved = snapshot(strategy)
    _step(strategy, network, 0, torch.nan)
    strategy.load_state_dict(saved)
    _step(strategy, network, 0)
    assert strategy.step == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", NEVER_WAIT, ids=str)
def test_no_step_waits_for_a_gpu(case: Case) -> None:
    network = Network().cuda()
    strategy = case.build(TASKS).cuda()
    x, targets = batch()
    data = (x.cuda(), {task: y.cuda() for task, y in targets.items()})
    _, losses = losses_of(network, data)
    strategy(losses).backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for present in presents():
            _, losses = losses_of(network, data)
            strategy({task: losses[task] for task in present}).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
