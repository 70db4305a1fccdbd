"""Where networks and losses are not what the simple tests assume."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mtlweight
from mtlweight import (
    DBMTL,
    DTP,
    DWA,
    GLS,
    IMTLL,
    MGDA,
    UW,
    Achievement,
    Equal,
    Fixed,
    FocalAchievement,
    LogLosses,
    OptionError,
    PCGrad,
)
from tests.contract.strategies import (
    BY_NAME,
    CASES,
    OF_GRADIENTS,
    OF_LOSSES,
    TASKS,
    Case,
    Network,
    batch,
    gradient_now,
    losses_of,
    metrics_of,
    plane,
    replay,
    same_bits,
    snapshot,
    solve,
)


class Checkpointed(Network):
    """Recomputes its trunk in each backward pass, and counts how often."""

    calls = 0

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        def trunk(x: Tensor) -> Tensor:
            self.calls += 1
            out: Tensor = self.trunk(x)
            return out

        features = checkpoint(trunk, x, use_reentrant=False)
        return features, {task: head(features) for task, head in self.heads.items()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_activation_checkpointing(case: Case) -> None:
    network, plain = Checkpointed().double(), Network().double()
    strategy, twin = case.build(TASKS), case.build(TASKS)
    _, losses = losses_of(network, batch(dtype=torch.float64))
    strategy(losses).backward()
    twin(losses_of(plain, batch(dtype=torch.float64))[1]).backward()
    wanted = gradient_now(plain.parameters())
    torch.testing.assert_close(gradient_now(network.parameters()), wanted)
    assert case.looks_ahead or network.calls == 1 + case.walks


@pytest.mark.parametrize("case", [c for c in OF_LOSSES if not c.looks_ahead], ids=str)
def test_a_loss_right_behind_a_checkpoint(case: Case) -> None:
    """Looking at a graph must not recompute it: the whole network is one checkpoint here."""
    layer = nn.Linear(4, 3)
    calls = [0]

    def forward(x: Tensor) -> Tensor:
        calls[0] += 1
        return layer(x).square()

    out = checkpoint(forward, torch.ones(2, 4), use_reentrant=False)
    losses = {task: out[:, i].mean() for i, task in enumerate(TASKS)}
    total = case.build(TASKS)(losses)
    assert calls[0] == 1, "the call itself recomputed the network"
    total.backward()
    assert calls[0] == 2
    assert layer.weight.grad is not None


def test_saved_tensor_hooks_are_not_fired_by_a_call() -> None:
    """As of tensors that were offloaded to the host or to disk."""
    unpacked = [0]

    def unpack(x: Tensor) -> Tensor:
        unpacked[0] += 1
        return x

    network = Network()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, unpack):
        _, losses = losses_of(network, batch())
    Equal(TASKS)(losses)
    assert unpacked[0] == 0


@pytest.mark.parametrize("case", OF_GRADIENTS, ids=str)
@pytest.mark.parametrize("form", ["stack", "cat", "float", "scaled", "vector of means"])
def test_ways_to_make_a_vector_of_losses(case: Case, form: str) -> None:
    """What is shared doesn't depend on how the vector was put together."""
    network = Network().double()
    _, losses = losses_of(network, batch(dtype=torch.float64))
    strategy = case.build(TASKS)
    strategy(losses).backward()
    wanted = gradient_now(network.parameters())
    network.zero_grad()
    _, losses = losses_of(network, batch(dtype=torch.float64))
    parts = list(losses.values())
    vector = {
        "stack": lambda: torch.stack(parts),
        "cat": lambda: torch.cat([part.reshape(1) for part in parts]),
        "float": lambda: torch.stack(parts).float().double(),
        "scaled": lambda: torch.stack(parts) * torch.ones(3, dtype=torch.float64),
        "vector of means": lambda: torch.stack([p.reshape(1) for p in parts], 1).mean(0),
    }[form]()
    twin = case.build(TASKS)
    twin(vector).backward()
    torch.testing.assert_close(gradient_now(network.parameters()), wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_network_of_another_precision(case: Case, dtype: torch.dtype) -> None:
    network = Network().to(dtype)
    strategy = case.build(TASKS)
    for form in ("mapping", "stack"):
        network.zero_grad()
        _, losses = losses_of(network, batch(dtype=dtype))
        given: Any = losses if form == "mapping" else torch.stack(list(losses.values()))
        strategy(given).backward()
        assert gradient_now(network.parameters()).isfinite().all()
        assert all(p.grad is not None and p.grad.dtype == dtype for p in network.parameters())
        assert strategy.weights.dtype == torch.float32


@pytest.mark.parametrize("name", ["log_mgda", "log_pcgrad", "db_mtl_no_past"])
def test_a_small_loss_in_half_precision(name: str) -> None:
    """The slope of its logarithm, 1e6, is no half-precision number."""
    theta = torch.tensor([1.0, 1.0, 1.0], requires_grad=True)
    losses = {
        task: (theta[i] * 1e-6 if task == "b" else theta[i]).half() for i, task in enumerate(TASKS)
    }
    strategy = BY_NAME[name].build(TASKS)
    strategy(losses).backward()
    assert theta.grad is not None
    assert theta.grad.isfinite().all()
    assert theta.grad[1] > 0


@pytest.mark.parametrize("build", [UW, IMTLL])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_learned_weights_survive_one_huge_loss(build: Any, dtype: torch.dtype) -> None:
    """A single spike must not stop the learning for ever."""
    strategy = build(2)
    for _ in range(600):
        solve(strategy, torch.eye(2, dtype=dtype), torch.tensor([1e-3, 1.0], dtype=dtype))
    spike = 1e18 if dtype == torch.float32 else 1e30
    solve(strategy, torch.eye(2, dtype=dtype), torch.tensor([spike, 1.0], dtype=dtype))
    for name, value in snapshot(strategy).items():
        assert not isinstance(value, Tensor) or value.isfinite().all(), f"{name} is dead: {value}"


@pytest.mark.parametrize("huge", [1e30, 1e100])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_huge_loss_in_double_precision(case: Case, huge: float) -> None:
    """Beyond what the state can hold: refused with its value, or taken without harm."""
    strategy = case.build(2)
    solve(strategy, torch.eye(2).double(), torch.tensor([1.0, 1.0]).double())
    before = snapshot(strategy)
    said = ""
    try:
        solve(strategy, torch.eye(2).double(), torch.tensor([huge, 1.0], dtype=torch.float64))
    except ValueError as error:
        said = str(error)
    if said:
        assert "'0'" in said
        assert f"{huge:.0e}" in said or repr(huge) in said
        assert same_bits(snapshot(strategy), before)
    for _ in range(3):
        solve(strategy, torch.eye(2).double(), torch.tensor([1.0, 1.0]).double())
        strategy.end_epoch(metrics_of("01"))
    assert strategy.weights.isfinite().all()


def test_tiny_gradients_in_double_precision() -> None:
    jacobian = torch.tensor([[1.0, 0.0], [-1e-170, 1e-170]]).double()
    for case in OF_GRADIENTS:
        d, w = solve(case.build(2), jacobian)
        assert d.isfinite().all(), case.name
        assert w.isfinite().all(), case.name


def test_geometric_strategies_cannot_be_fed_logarithms() -> None:
    """A logarithm below zero has no logarithm: said when it is built, not in mid-training."""
    for inner in (GLS(TASKS), DBMTL(TASKS), LogLosses(Equal(TASKS)), Achievement(2, [1.0, 1.0])):
        with pytest.raises(OptionError, match=type(inner).__name__):
            LogLosses(inner)


def test_a_task_that_was_absent_has_a_say_in_evaluation() -> None:
    """`eval()` after a batch without "b": the loss of "b" still counts."""
    network, strategy = Network(), Equal(TASKS)
    _, losses = losses_of(network, batch())
    strategy(losses)
    strategy({task: losses[task] for task in ("a", "c")})
    strategy.eval()
    alone = strategy({"b": losses["b"]})
    assert alone.item() > 0


@pytest.mark.parametrize("case", OF_GRADIENTS, ids=str)
def test_a_dead_end_of_the_trunk(case: Case) -> None:
    """Parameters that no loss reaches keep `grad` None, so that optimizers leave them alone."""
    network = Network()
    network.extra = nn.Linear(3, 3)
    _, losses = losses_of(network, batch())
    case.build(TASKS)(losses).backward()
    assert network.extra.weight.grad is None


@pytest.mark.parametrize("case", OF_GRADIENTS, ids=str)
def test_a_shared_embedding_with_sparse_gradients(case: Case) -> None:
    table = nn.Embedding(10, 4, sparse=True)
    heads = nn.ModuleList([nn.Linear(4, 1) for _ in TASKS])
    strategy = case.build(TASKS)

    def losses() -> list[Tensor]:
        vectors = table(torch.tensor([1, 3, 3]))
        return [head(vectors).square().mean() for head in heads]

    replay(losses)
    for _ in range(3 if case.in_turn else 1):
        strategy(losses()).backward()
    assert table.weight.grad is not None
    gradient = table.weight.grad.to_dense()
    assert gradient[[1, 3]].any(1).all()
    assert not gradient[[0, 2, 4, 5, 6, 7, 8, 9]].any()


@pytest.mark.parametrize("case", OF_GRADIENTS, ids=str)
def test_tied_weights(case: Case) -> None:
    """A leaf used twice by a task counts once, with the sum of both uses."""
    network = Network().double()
    w = network.trunk[0].weight
    x, targets = batch(dtype=torch.float64)
    strategy = case.build(TASKS)
    _features, losses = losses_of(network, (x, targets))
    tied = {task: loss + (x @ w.T).square().mean() for task, loss in losses.items()}
    rows = [
        torch.cat(
            [
                g.reshape(-1)
                for g in torch.autograd.grad(
                    loss, list(network.trunk.parameters()), retain_graph=True
                )
            ]
        )
        for loss in tied.values()
    ]
    strategy(tied).backward()
    if case.expressible:
        torch.testing.assert_close(
            gradient_now(network.trunk.parameters()),
            strategy.weights.double() @ torch.stack(rows),
            rtol=1e-5,
            atol=1e-7,
        )


@pytest.mark.parametrize("case", [c for c in CASES if not c.looks_ahead], ids=str)
def test_in_a_compiled_network(case: Case) -> None:
    """Compiled without code generation: the graph has one node for the whole network."""
    network = Network()
    compiled = torch.compile(network, backend="aot_eager")
    x, targets = batch()
    _, outputs = compiled(x)
    losses = {task: torch.nn.functional.mse_loss(outputs[task], targets[task]) for task in TASKS}
    strategy = case.build(TASKS)
    with torch._functorch.config.patch(donated_buffer=False):
        strategy(losses, shared=list(network.trunk.parameters())).backward()
    twin, plain = case.build(TASKS), Network()
    shared = list(plain.trunk.parameters())
    twin(losses_of(plain, batch())[1], shared=shared).backward()
    torch.testing.assert_close(
        gradient_now(network.trunk.parameters()),
        gradient_now(plain.trunk.parameters()),
        rtol=1e-4,
        atol=1e-6,
    )


# --- options and metrics -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: DWA(3, temperature=0), "temperature"),
        (lambda: DWA(3, temperature=float("nan")), "temperature"),
        (lambda: DWA(3, temperature=-1.0), "temperature"),
        (lambda: DWA(3, temprature=2.0), "temprature.*temperature"),
        (lambda: Equal(3, rescale="sum"), "rescale.*sum"),
        (lambda: Equal(3, rescal="one"), "rescal.*rescale"),
        (lambda: GLS(3, check="never"), "check.*never"),
        (lambda: GLS(3, heads="plain"), "heads"),
        (lambda: MGDA(3, heads="none"), "heads.*none"),
        (lambda: DBMTL(3, beta=1.0), "beta.*1.0"),
        (lambda: PCGrad(3, seed=-1), "seed.*-1"),
        (lambda: DTP(3, gamma=-1), "gamma"),
        (lambda: Achievement(3), "references"),
        (lambda: Achievement(TASKS, {"a": 1.0, "b": 2.0}), "'c'"),
        (lambda: Achievement(TASKS, {"a": 1.0, "b": 2.0, "c": 0.0}), "'c'.*0.0"),
        (lambda: FocalAchievement(TASKS, [1.0, 2.0, float("nan")]), "'c'.*nan"),
        (lambda: FocalAchievement(TASKS, [1.0, 2.0, 3.0], gamma=float("inf")), "gamma"),
        (lambda: FocalAchievement(TASKS, [1, 2, 3], higher_is_better={"a": True}), "b"),
        (lambda: Fixed(TASKS, [1.0, 2.0]), r"\[2\]"),
        (lambda: Fixed(TASKS, [1.0, -2.0, 3.0]), "'b'.*-2.0"),
        (lambda: Fixed(TASKS, [0.0, 0.0, 0.0]), "zero"),
        (lambda: Equal(0), "at least 1"),
        (lambda: Equal(["a", "a"]), "'a'"),
        (lambda: Equal("ab"), "ab"),
        (lambda: Equal([]), "names"),
        (lambda: Equal(True), "True"),
        (lambda: LogLosses(Equal(3), epsilon=-1), "epsilon"),
        (lambda: LogLosses("equal"), "equal"),
        (lambda: mtlweight.build("dwaa", 3), "dwaa.*'dwa'"),
        (lambda: mtlweight.build("dwa", 3, temperature="hot"), "temperature.*hot"),
    ],
)
def test_options_are_refused_by_name(build: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){words}"):
        build()


def test_metrics_are_refused_by_name() -> None:
    bad: list[tuple[Any, str]] = [
        ({"a": 0.5, "b": float("nan"), "c": 0.5}, "'b'.*nan"),
        ({"a": 0.5, "b": float("inf"), "c": 0.5}, "'b'.*inf"),
        ({"a": 0.5, "c": 0.5}, "'b'"),
        ({"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5}, "'d'"),
        ([0.5, 0.5], r"\[2\]"),
        (None, "end_epoch"),
        ({"a": 0.5, "b": "good", "c": 0.5}, "'b'.*good"),
        ({"a": 0.5, "b": None, "c": 0.5}, "'b'.*None"),
    ]
    for case in CASES:
        if not case.metrics:
            case.build(TASKS).end_epoch(metrics_of(TASKS))  # ignored, not refused
            continue
        for metrics, words in bad:
            with pytest.raises((ValueError, TypeError), match=words):
                case.build(TASKS).end_epoch(metrics)


def test_numbers_of_other_libraries_are_metrics() -> None:
    for given in (
        [np.float32(0.5), np.float64(0.6), 0.7],
        torch.tensor([0.5, 0.6, 0.7]),
        {"a": torch.tensor(0.5), "b": np.float64(0.6), "c": 0.7},
    ):
        strategy = DTP(TASKS)
        strategy.end_epoch(given)
        assert strategy.weights[0] > strategy.weights[1] > strategy.weights[2]


def test_nothing_is_drawn_from_the_global_generator() -> None:
    for case in CASES:
        _, losses = plane(torch.eye(3))
        torch.manual_seed(5)
        wanted = torch.rand(3)
        torch.manual_seed(5)
        strategy = case.build(TASKS)
        strategy(losses).backward()
        strategy.end_epoch(metrics_of(TASKS))
        assert torch.equal(torch.rand(3), wanted), case.name


def test_a_strategy_has_nothing_for_the_optimizer() -> None:
    for case in CASES:
        assert not list(case.build(TASKS).parameters()), case.name
