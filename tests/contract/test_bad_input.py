"""The situations in which libraries of this kind crash, lie or destroy the network: all strategies.

Each run trains three good steps, meets the situation, and trains two good steps more.
"""

from __future__ import annotations

import copy
import functools
import re
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtlweight
from tests.contract.strategies import (
    BY_NAME,
    CASES,
    TASKS,
    Case,
    Network,
    batch,
    gradient_now,
    gradient_rows,
    losses_of,
    metrics_of,
    same_bits,
    snapshot,
)

LIBRARY = str(Path(mtlweight.__file__).parent)
OTHERS = ("a", "c")  # the situations happen to task "b"


@dataclass
class World:
    """A forward pass of the network that training has reached, before its losses are spoilt."""

    network: Network
    features: Tensor
    losses: dict[str, Tensor]

    def with_b(self, loss: Any) -> dict[str, Any]:
        return {**self.losses, "b": loss}

    def everywhere(self, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        return {task: change(loss) for task, loss in self.losses.items()}


@dataclass(frozen=True)
class Situation:
    """What happens, and what may come of it.

    Attributes:
        losses: Makes the losses of the bad step.
        accept: Whether a sensible step is an outcome wanted.
        refuse: The words that the error must hold; None where it must not be refused.
        only_nonnegative: Whether it is to be refused by those that take logarithms, and accepted by
            all others.
        no_step: Whether nothing must move.
        grad: Whether autograd is on.
        checks: What else is looked at.
    """

    number: int
    name: str
    losses: Callable[[World], Any]
    accept: bool = True
    refuse: tuple[str, ...] | None = None
    only_nonnegative: bool = False
    no_step: bool = False
    grad: bool = True
    checks: Iterable[str] = field(default_factory=tuple)

    def __str__(self) -> str:
        return f"{self.number}-{self.name}"


def _freed(world: World) -> dict[str, Tensor]:
    total = sum(world.losses.values())
    assert isinstance(total, Tensor)
    total.backward()
    world.network.zero_grad()
    return world.losses


def _opposite(world: World) -> dict[str, Tensor]:
    return world.with_b(3 * world.losses["a"].item() - world.losses["a"] * 1.0)


def _identical(world: World) -> dict[str, Tensor]:
    return {task: world.losses["a"] * 1.0 for task in TASKS}


def _shares_a_node_after_features(world: World) -> dict[str, Tensor]:
    common = (world.features * world.features).sin()
    return {task: loss + common.mean() for task, loss in world.losses.items()}


def _b_uses_one_layer_of_the_trunk(world: World) -> dict[str, Tensor]:
    x, _ = batch(7)
    early = world.network.trunk[0](x).tanh()
    return world.with_b(early.square().mean() + 0 * world.losses["b"])


def _no_trunk(world: World) -> dict[str, Tensor]:
    free = world.features.detach()
    return {task: head(free).square().mean() for task, head in world.network.heads.items()}


def _head_only(world: World) -> dict[str, Tensor]:
    return world.with_b(world.network.heads["b"](world.features.detach()).square().mean())


def _frozen(world: World) -> dict[str, Tensor]:
    # The harness froze the first layer before this forward pass.
    assert not world.network.trunk[0].weight.requires_grad
    return world.losses


def _scaled_to(loss: Tensor, value: float) -> Tensor:
    return loss * (value / loss.item())


SITUATIONS = [
    Situation(1, "nan loss", lambda w: w.with_b(w.losses["b"] * torch.nan), False, ("'b'", "nan")),
    Situation(2, "inf loss", lambda w: w.with_b(w.losses["b"] * torch.inf), False, ("'b'", "inf")),
    Situation(3, "zero loss", lambda w: w.with_b(w.losses["b"] * 0.0)),
    Situation(4, "all zero", lambda w: w.everywhere(lambda loss: loss * 0.0), no_step=True),
    Situation(
        5,
        "negative loss",
        lambda w: w.with_b(w.losses["b"] - 100.0),
        refuse=("'b'", "-9", "negative"),
        only_nonnegative=True,
    ),
    Situation(6, "no gradient of one", lambda w: w.with_b(w.losses["b"] * 0.0 + 1.5)),
    Situation(
        7, "no gradient", lambda w: w.everywhere(lambda loss: loss * 0.0 + 1.5), no_step=True
    ),
    Situation(8, "identical gradients", _identical),
    Situation(9, "opposite gradients", _opposite),
    Situation(10, "node shared after the features", _shares_a_node_after_features),
    Situation(
        11,
        "gradient 1e6 times bigger",
        lambda w: w.with_b(w.losses["b"] * 1e6),
        checks=("others move",),
    ),
    Situation(
        12,
        "huge loss",
        lambda w: w.with_b(_scaled_to(w.losses["b"], 1e30)),
        refuse=("'b'", r"e\+(29|30)"),
    ),
    Situation(
        13,
        "all huge",
        lambda w: w.everywhere(lambda loss: _scaled_to(loss, 1e25)),
        refuse=("'a'", r"e\+2"),
    ),
    Situation(14, "subnormal loss", lambda w: w.with_b(_scaled_to(w.losses["b"], 1e-20) * 1e-22)),
    Situation(15, "all tiny", lambda w: w.everywhere(lambda loss: loss * 1e-25)),
    Situation(16, "None", lambda w: w.with_b(None), False, ("'b'", "None", "leave")),
    Situation(
        17, "too few", lambda w: list(w.losses.values())[:2], False, (r"\[2\]", r"\[3\]", "a, b")
    ),
    Situation(
        18,
        "too many",
        lambda w: [*w.losses.values(), w.losses["a"] * 1.0],
        False,
        (r"\[3\]", r"\[4\]"),
    ),
    Situation(19, "no losses", lambda w: {}, False, ("empty",)),
    Situation(20, "by name", lambda w: w.losses, checks=("as list",)),
    Situation(
        21, "detached", lambda w: w.with_b(w.losses["b"].detach()), False, ("'b'", "detached")
    ),
    Situation(22, "python float", lambda w: w.with_b(0.75), False, ("'b'", "0.75")),
    Situation(23, "integer", lambda w: w.with_b(torch.tensor(3)), False, ("'b'", "int64")),
    Situation(
        24,
        "vector",
        lambda w: w.with_b(w.losses["b"] * torch.ones(5)),
        False,
        ("'b'", r"\[5\]", "mean"),
    ),
    Situation(25, "shape (1,)", lambda w: w.with_b(w.losses["b"].reshape(1)), refuse=("'b'",)),
    Situation(26, "one in float64", lambda w: w.with_b(w.losses["b"].double())),
    Situation(27, "one in bfloat16", lambda w: w.with_b(w.losses["b"].bfloat16())),
    Situation(
        28,
        "large float16",
        lambda w: w.everywhere(lambda loss: _scaled_to(loss, 6e4).half()),
    ),
    Situation(
        29,
        "another device",
        lambda w: w.with_b(torch.ones((), device="meta", requires_grad=True)),
        False,
        ("'b'", "meta", "cpu"),
    ),
    Situation(
        30,
        "part of the trunk unused by one",
        _b_uses_one_layer_of_the_trunk,
        refuse=("features", "around"),  # where features are what is shared
    ),
    Situation(31, "trunk never used", _no_trunk, refuse=("shared",)),
    Situation(32, "frozen layer", _frozen),
    Situation(33, "one reaches its head alone", _head_only),
    Situation(34, "one tensor twice", lambda w: w.with_b(w.losses["a"]), refuse=("'b'",)),
    Situation(35, "no grad", lambda w: w.losses, False, ("no_grad",), grad=False),
    Situation(36, "freed graph", _freed, False, ("'a'", "freed")),
    Situation(
        38,
        "another order",
        lambda w: dict(reversed(w.losses.items())),
        checks=("as list",),
    ),
    Situation(
        41,
        "a task more",
        lambda w: {**w.losses, "d": w.losses["a"] * 2.0},
        False,
        ("'d'", "a, b, c"),
    ),
]


def _set_up(case: Case) -> tuple[Network, mtlweight.Strategy, torch.optim.Optimizer]:
    network = Network()
    return network, case.build(TASKS), torch.optim.Adam(network.parameters(), 1e-2, fused=True)


def _good_step(
    network: Network,
    strategy: mtlweight.Strategy,
    optimizer: torch.optim.Optimizer,
    step: int,
    mode: str = "found",
) -> None:
    features, losses = losses_of(network, batch(step))
    optimizer.zero_grad()
    strategy(losses, shared=_shared_of(mode, network, features)).backward()
    optimizer.step()
    if step < 2:
        strategy.end_epoch(metrics_of(TASKS, shift=0.02 * step))


@functools.cache
def _undisturbed(name: str, mode: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    network, strategy, optimizer = _set_up(BY_NAME[name])
    for step in range(5):
        _good_step(network, strategy, optimizer, step, mode)
    return network.state_dict(), snapshot(strategy)


def _shared_of(mode: str, network: Network, features: Tensor) -> Any:
    parameters = list(network.trunk.parameters())
    return {"found": None, "parameters": parameters, "features": features}[mode]


# Where what is shared matters, every way to say what it is meets the situation.
MODES = {
    "found": set(range(42)),
    "parameters": {8, 14, 30, 31, 32, 33},
    "features": {6, 9, 11, 14, 30, 31, 33},
}


PAIRS = [
    pytest.param(situation, case, mode, id=f"{situation}-{case}-{mode}")
    for situation in SITUATIONS
    if situation.accept
    for case in CASES
    for mode, numbers in MODES.items()
    if mode == "found" or (case.gradients and situation.number in numbers)
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_situations_that_are_refused(case: Case) -> None:
    """One after the other, in one training, which then goes on as if there had been none."""
    network, strategy, optimizer = _set_up(case)
    for step in range(3):
        _good_step(network, strategy, optimizer, step)
    before, parameters = snapshot(strategy), snapshot_of(network)
    for situation in SITUATIONS:
        if situation.accept:
            continue
        losses = situation.losses(World(network, *losses_of(network, batch(99))))
        optimizer.zero_grad()
        try:
            with torch.set_grad_enabled(situation.grad):
                strategy(losses)
        except Exception as error:
            _check_refusal(situation, case, "found", error)
        else:
            pytest.fail(f"{situation}: {situation.refuse} should have been said")
        assert same_bits(snapshot(strategy), before), f"{situation} changed the state"
        assert same_bits(snapshot_of(network), parameters)
    for step in range(3, 5):
        _good_step(network, strategy, optimizer, step)
    end, state = _undisturbed(case.name, "found")
    assert same_bits(network.state_dict(), end), "a refused call changed the training after it"
    assert same_bits(snapshot(strategy), state)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("situation", "case", "mode"), PAIRS)
def test_situation(situation: Situation, case: Case, mode: str) -> None:
    network, strategy, optimizer = _set_up(case)
    for step in range(3):
        _good_step(network, strategy, optimizer, step, mode)
    if situation.number == 32:
        network.trunk[0].requires_grad_(False)

    features, good_losses = losses_of(network, batch(99))
    world = World(network, features, good_losses)
    losses = situation.losses(world)
    before, parameters = snapshot(strategy), snapshot_of(network)
    reference = list_reference(situation, case, strategy, world, mode)
    rows = None
    if isinstance(losses, dict):
        ordered = {task: losses[task] for task in TASKS}
        rows = gradient_rows(ordered, [p for p in network.parameters() if p.requires_grad])
    optimizer.zero_grad()
    try:
        with warnings.catch_warnings():
            if situation.number == 31:
                warnings.filterwarnings("ignore", "The losses of .* share no trainable leaf")
            total = strategy(losses, shared=_shared_of(mode, world.network, world.features))
        total.backward()
    except Exception as error:
        _check_refusal(situation, case, mode, error)
        assert same_bits(snapshot(strategy), before), "a refused call changed the state"
        assert same_bits(snapshot_of(network), parameters)
        if situation.number == 32:
            return
        for step in range(3, 5):
            _good_step(network, strategy, optimizer, step, mode)
        end, state = _undisturbed(case.name, mode)
        assert same_bits(network.state_dict(), end), "a refused call changed the training after it"
        assert same_bits(snapshot(strategy), state)
        return

    if situation.only_nonnegative:
        assert not case.nonnegative, "accepted a negative loss"
    assert total.isfinite()
    assert strategy.weights.isfinite().all(), strategy.named_weights
    assert gradient_now(network.parameters()).isfinite().all(), (
        f"gradient not finite; weights {strategy.named_weights}"
    )
    if situation.no_step:  # but along the past, or held-out losses
        assert gradient_now(network.parameters()).any() != case.of_this_step
    if case.expressible and rows is not None:
        _check_trunk(situation, case, strategy, network, rows, mode)
    if reference is not None:
        assert torch.equal(gradient_now(network.parameters()), reference)
    if "others move" in situation.checks:
        for task in OTHERS:
            gradient = network.heads[task].weight.grad
            assert gradient is not None
            assert gradient.any() or (case.sparse and strategy.named_weights[task] == 0)
    optimizer.step()
    middle = snapshot_of(network)
    network.trunk[0].requires_grad_(True)
    for step in range(3, 5):
        _good_step(network, strategy, optimizer, step, mode)
    for name, parameter in network.named_parameters():
        assert parameter.isfinite().all(), f"{name} is not finite after the situation"
    for name, parameter in network.trunk.named_parameters():
        assert not torch.equal(middle[f"trunk.{name}"], parameter), f"{name} no longer moves"
    for name, value in strategy.state_dict().items():
        if isinstance(value, Tensor) and not name.endswith("last_means"):
            assert value.isfinite().all(), f"the state {name} is not finite after the situation"


def snapshot_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def list_reference(
    situation: Situation, case: Case, strategy: mtlweight.Strategy, world: World, mode: str
) -> Tensor | None:
    """Returns the gradient that the same losses give as a list, by a copy of the strategy."""
    if "as list" not in situation.checks:
        return None
    twin = copy.deepcopy(strategy)
    world.network.zero_grad()
    twin(
        list(world.losses.values()), shared=_shared_of(mode, world.network, world.features)
    ).backward(retain_graph=True)
    gradient = gradient_now(world.network.parameters())
    world.network.zero_grad()
    return gradient


def _check_refusal(situation: Situation, case: Case, mode: str, error: Exception) -> None:
    wanted = situation.refuse
    if situation.number == 30:
        assert mode == "features", f"refused: {error!r}"
    assert wanted is not None, f"{situation} refused: {error!r}"
    if situation.only_nonnegative:
        assert case.nonnegative, f"refused: {error!r}"
    assert isinstance(error, ValueError | TypeError | RuntimeError), repr(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    assert last.filename.startswith(LIBRARY), f"raised in {last.filename}:{last.lineno}: {error!r}"
    for word in wanted:
        assert re.search(word, str(error)), f"{situation}: {word!r} is missing in: {error}"


def _check_trunk(
    situation: Situation,
    case: Case,
    strategy: mtlweight.Strategy,
    network: Network,
    rows: Tensor,
    mode: str,
) -> None:
    """The trunk's gradient is that of the losses times the reported weights."""
    trunk = [p for p in network.trunk.parameters() if p.requires_grad]
    size = sum(p.numel() for p in trunk)
    weights = strategy.weights.double()
    wanted = weights @ rows[:, :size]
    got = gradient_now(trunk)
    scale = (weights.abs()[:, None] * rows[:, :size].abs()).sum(0).norm()
    coarse = situation.number in (27, 28)  # 16-bit losses round on their way back
    tolerance = 2e-2 if coarse else 1e-5
    assert (got - wanted).norm() <= tolerance * scale + 1e-30  # below, float32 has no digits left


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_task_is_plain_training(case: Case) -> None:
    network = Network(("a",))
    strategy = case.build(("a",))
    for step in range(3):
        network.zero_grad()
        _, losses = losses_of(network, batch(step, tasks=("a",)))
        rows = gradient_rows(losses, network.parameters())
        strategy(losses).backward()
        strategy.end_epoch(metrics_of(("a",)))
        got = gradient_now(network.parameters())
        cosine = torch.nn.functional.cosine_similarity(got, rows[0], dim=0)
        if case.in_turn and step == 0:
            torch.testing.assert_close(got, rows[0].sign(), rtol=1e-6, atol=1e-3)  # as of Adam
        elif case.of_this_step or step == 0:
            assert cosine == pytest.approx(1, abs=1e-6)
        if case.one:
            torch.testing.assert_close(got, rows[0], rtol=1e-6, atol=1e-8)
        assert strategy.weights[0] > 0


@pytest.mark.parametrize("case", CASES, ids=str)
def test_state_of_other_tasks_is_refused(case: Case) -> None:
    """Situation 40, and its relatives."""
    saved = case.build(TASKS).state_dict()
    for tasks in (("a", "b"), ("a", "b", "c", "d"), ("a", "c", "b"), ("a", "b", "x"), 3):
        strategy = case.build(tasks)
        before = snapshot(strategy)
        with pytest.raises(ValueError, match="tasks") as caught:
            strategy.load_state_dict(saved)
        assert "['a', 'b', 'c']" in str(caught.value)
        assert str(list(strategy.tasks)) in str(caught.value)
        assert same_bits(snapshot(strategy), before)
