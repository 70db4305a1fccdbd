from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mtlweight import (
    DBMTL,
    DTP,
    DWA,
    GLS,
    MGDA,
    RLW,
    UW,
    Achievement,
    AvgNorm,
    Bounded,
    Equal,
    Every,
    Fixed,
    FocalAchievement,
    LogLosses,
    LossStrategy,
    OptionError,
    PCGrad,
    Preference,
    Smoothed,
    Strategy,
    Tempered,
    WarmUp,
    Wrapper,
)
from mtlweight.wrappers.bounded import bounded
from tests.contract.strategies import (
    REGISTERED,
    TASKS,
    Case,
    Network,
    batch,
    constant_of,
    gradient_now,
    gradient_rows,
    losses_of,
    metrics_of,
    plane,
    same_bits,
    snapshot,
    solve,
)

J = torch.tensor([[3, 1, 0, 0], [-1, 2, 1, 0], [0, -1, 2, 2]], dtype=torch.float64)


def rows(seed: int, tasks: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, 6, generator=generator, dtype=torch.float64)


def weights_of(strategy: Strategy, losses: Any = None, seed: int = 0) -> Tensor:
    """Returns the weights `[T]` of one step; losses by task name may leave tasks out."""
    theta = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    values = dict.fromkeys(strategy.tasks, 1.0) if losses is None else losses
    jacobian = dict(zip(strategy.tasks, rows(seed, strategy.num_tasks), strict=True))
    total = strategy({task: jacobian[task] @ theta + value for task, value in values.items()})
    total.backward()
    return strategy.weights.double()


def close(got: Tensor, wanted: Any) -> None:
    torch.testing.assert_close(
        got.double(), torch.as_tensor(wanted, dtype=torch.float64), rtol=2e-6, atol=2e-6
    )


# --- any wrapper, any strategy -------------------------------------------------------------------


def preferring(inner: Strategy) -> Strategy:
    return Preference({task: constant_of(task) for task in inner.tasks}, inner)


def logarithms(inner: Strategy) -> Strategy:
    return inner if inner.nonnegative_losses else LogLosses(inner)


SINGLE: dict[str, Callable[[Strategy], Strategy]] = {
    "smoothed": lambda inner: Smoothed(0.9, inner),
    "every": lambda inner: Every(3, inner),
    "warm_up": lambda inner: WarmUp(1, inner),
    "bounded": lambda inner: Bounded(inner, floor=0.1),
    "preference": preferring,
    "tempered": lambda inner: Tempered(2.0, inner),
}
NESTED: dict[str, Callable[[Strategy], Strategy]] = {
    "warm_up_steps": lambda inner: WarmUp(5, inner, unit="steps"),
    "smoothed_log": lambda inner: Smoothed(0.9, logarithms(inner)),
    "bounded_every": lambda inner: Bounded(Every(3, inner), floor=0.1),
    "every_smoothed": lambda inner: Every(2, Smoothed(0.5, inner)),
    "warm_up_preference": lambda inner: WarmUp(2, preferring(inner), unit="steps"),
}
WRAPS = SINGLE | NESTED
SOME = [REGISTERED[name] for name in ("dwa", "gls", "uw", "mgda", "db_mtl", "focal_achievement")]
PAIRS = [
    *((SINGLE[name], case, f"{name}-{case}") for name in SINGLE for case in REGISTERED.values()),
    *((NESTED[name], case, f"{name}-{case}") for name in NESTED for case in SOME),
]
ANY = pytest.mark.parametrize(("wrap", "case"), [pytest.param(w, c, id=i) for w, c, i in PAIRS])
PRESENT = [TASKS, ("a", "c"), TASKS, TASKS, TASKS, ("c",)]


@functools.cache
def data(step: int) -> Any:
    return batch(step, dtype=torch.float64)


def train(
    strategy: Strategy, network: Network, start: int, end: int, check: bool = False
) -> list[Tensor]:
    weights = []
    for step in range(start, end):
        _, losses = losses_of(network, data(step))
        present = {task: losses[task] for task in PRESENT[step]}
        jacobian = gradient_rows(present, network.trunk.parameters()) if check else None
        network.zero_grad()
        total = strategy(present)
        total.backward()
        got = gradient_now(network.trunk.parameters())
        assert total.isfinite()
        assert got.isfinite().all()
        assert strategy.weights.isfinite().all()
        if jacobian is not None:
            now = strategy.weights.double()[[TASKS.index(task) for task in present]]
            scale = (now.abs()[:, None] * jacobian.abs()).sum(0).norm()
            assert (got - now @ jacobian).norm() <= 2e-6 * scale
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.grad is not None:
                    parameter.sub_(1e-3 * parameter.grad)
        weights.append(strategy.weights.clone())
        if step % 3 == 2:
            strategy.end_epoch(metrics_of(TASKS, 0.01 * step))
            assert strategy.weights.isfinite().all()
    return weights


@ANY
def test_any_wrapper_around_any_strategy(wrap: Callable[..., Strategy], case: Case) -> None:
    """The weights are the true ones, and a run that is stopped and resumed has the same bits."""
    cut = 4  # before a step with all tasks, within a window and an epoch
    whole, network = wrap(case.build(TASKS)), Network().double()
    first = train(whole, network, 0, cut, check=case.expressible)
    saved, parameters = snapshot(whole), copy.deepcopy(network.state_dict())
    rest = train(whole, network, cut, 6, check=case.expressible)

    resumed, other = wrap(case.build(TASKS)), Network().double()
    resumed.load_state_dict(saved)
    other.load_state_dict(parameters)
    assert same_bits(dict(enumerate(train(resumed, other, cut, 6))), dict(enumerate(rest)))
    assert same_bits(snapshot(resumed), snapshot(whole))
    assert len(first) == cut


@pytest.mark.parametrize("case", REGISTERED.values(), ids=str)
def test_one_task(case: Case) -> None:
    network, strategy = Network(("a",)), case.build(("a",))
    for wrap in SINGLE.values():
        strategy = wrap(strategy)
    assert isinstance(strategy, Wrapper)
    for step in range(3):
        network.zero_grad()
        _, losses = losses_of(network, batch(step, tasks=("a",)))
        rows = gradient_rows(losses, network.trunk.parameters())
        strategy(losses).backward()
        weight = strategy.weights.double()[0]
        assert weight > 0
        if case.expressible:
            got = gradient_now(network.trunk.parameters())
            torch.testing.assert_close(got, weight * rows[0], rtol=1e-5, atol=1e-8)
        if case.one:
            assert weight == pytest.approx(1)
        if step % 2:
            strategy.end_epoch(metrics_of(("a",)))
            assert strategy.weights[0] > 0


@pytest.mark.parametrize("inner", [DWA, GLS, UW, RLW])
@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_no_wrapper_waits(wrap: Callable[..., Strategy], inner: Any) -> None:
    """On the meta device tensors have no values: whoever reads one fails."""
    strategy = wrap(inner(TASKS)).to("meta")
    assert not strategy.waits
    theta = torch.zeros(4, device="meta", requires_grad=True)
    for present in (TASKS, TASKS, ("a", "c"), TASKS):
        strategy({task: theta.sum() for task in present}).backward()
    strategy.end_epoch()
    assert strategy.weights.is_meta


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_what_is_refused_leaves_no_trace(wrap: Callable[..., Strategy]) -> None:
    references = [1.0, 2.0, 3.0]
    for inner in (MGDA(TASKS), GLS(TASKS), FocalAchievement(TASKS, references)):
        strategy = wrap(inner)
        for step in range(2):
            weights_of(strategy, seed=step)
        before = snapshot(strategy)
        with pytest.raises(ValueError, match="nan"):
            weights_of(strategy, {"a": 1.0, "b": torch.nan, "c": 1.0})
        assert same_bits(snapshot(strategy), before)
        if isinstance(inner, FocalAchievement):
            with pytest.raises(ValueError, match="'b'"):
                strategy.end_epoch([0.1, torch.nan, 0.3])
        assert same_bits(snapshot(strategy), before)


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_the_state_around_another_strategy_is_refused(wrap: Callable[..., Strategy]) -> None:
    for inner, other in ((DWA, RLW), (MGDA, PCGrad)):
        saved = wrap(inner(TASKS)).state_dict()
        strategy = wrap(other(TASKS))
        before = snapshot(strategy)
        with pytest.raises(ValueError, match=inner.__name__):
            strategy.load_state_dict(saved)
        assert same_bits(snapshot(strategy), before)
    other_wrapper = Smoothed(0.5, Smoothed(0.5, Smoothed(0.5, DWA(TASKS))))
    with pytest.raises((ValueError, RuntimeError)):
        wrap(DWA(TASKS)).load_state_dict(other_wrapper.state_dict())


class Learnable(LossStrategy):
    """A strategy of someone else's, whose parameter an optimizer learns through the scalar."""

    def __init__(self, tasks: int) -> None:
        super().__init__(tasks)
        self.logits = nn.Parameter(torch.zeros(self.num_tasks))

    def scalarize(self, losses: Tensor) -> Tensor:
        return (self.logits.softmax(0) * losses).sum()


@pytest.mark.parametrize("name", ["smoothed", "warm_up", "bounded", "preference", "tempered"])
def test_parameters_of_the_inner_strategy_are_learned(name: str) -> None:
    gradients = []
    for strategy in (Learnable(3), WRAPS[name](Learnable(3))):
        weights_of(strategy, {"0": 1.0, "1": 2.0, "2": 5.0})
        gradients.append(next(strategy.parameters()).grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_checks_follow_the_inner_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda self: False), raising=False)
    for wrap in WRAPS.values():
        with pytest.raises(ValueError, match="'1' is nan"):
            weights_of(wrap(Equal(3, check="now")), {"0": 1.0, "1": torch.nan, "2": 1.0})


@pytest.mark.parametrize("name", [name for name in WRAPS if "log" not in name])
@pytest.mark.parametrize(("rescale", "total"), [("one", 1), ("tasks", 3)])
def test_the_length_asked_for_holds_of_changed_weights(name: str, rescale: Any, total: int) -> None:
    strategy = WRAPS[name](AvgNorm(TASKS, rescale=rescale))
    for step, present in enumerate((TASKS, ("a", "c"), TASKS, ("b", "c"), TASKS)):
        close(weights_of(strategy, dict.fromkeys(present, 1.0), step).sum(), total)
    strategy.end_epoch()
    close(strategy.weights.sum(), total)


def test_weights_before_the_first_step() -> None:
    """The first interval of a run that spends weights on data goes by them."""
    inner = Fixed(TASKS, [0.9, 0.05, 0.05])
    close(Bounded(inner, floor=0.1).weights, [0.8, 0.1, 0.1])
    close(Preference([1, 2, 1], Equal(TASKS)).weights, [0.25, 0.5, 0.25])
    close(Smoothed(0.9, inner).weights, [0.9, 0.05, 0.05])
    close(Every(3, inner).weights, [0.9, 0.05, 0.05])
    close(Tempered(1.0, inner).weights, [0.9, 0.05, 0.05])
    close(WarmUp(1, inner).weights, [1 / 3] * 3)
    close(WarmUp(0, inner).weights, [0.9, 0.05, 0.05])


# --- constructors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Smoothed(1.5, Equal(3)), "share.*1.5"),
        (lambda: Smoothed(-0.1, Equal(3)), "share.*-0.1"),
        (lambda: Smoothed(0.9), r"needs `inner`: call Smoothed\(share, inner\)"),
        (lambda: Smoothed(inner=Equal(3)), r"needs `share`: call Smoothed\(share, inner\)"),
        (lambda: Smoothed(0.9, "mgda"), "`inner` must be a Strategy.*'mgda'"),
        (lambda: Smoothed(0.9, MGDA), "`inner` must be a Strategy.*MGDA"),
        (lambda: Smoothed(Equal(3), 0.9), "share.*Equal"),
        (lambda: Smoothed(0.9, Equal(3), 4), "by position"),
        (lambda: Smoothed(0.9, Equal(3), share=0.5), "`share` twice"),
        (lambda: Smoothed(0.9, Equal(3), rescale="one"), "no option `rescale`"),
        (lambda: Every(0, Equal(3)), "steps.*0"),
        (lambda: Every(1.5, Equal(3)), "steps.*1.5"),
        (lambda: WarmUp(-1, Equal(3)), "duration.*-1"),
        (lambda: WarmUp(1, Equal(3), unit="batches"), "unit.*batches"),
        (lambda: WarmUp(1, Equal(3), weights=[1.0, 2.0]), r"weights.*\[2\]"),
        (lambda: WarmUp(1, Equal(3), weights=[1.0, -2.0, 1.0]), "weights.*'1'.*-2.0"),
        (lambda: Bounded(Equal(3), floor=0.34), "floor.*0.34.*0.333333"),
        (lambda: Bounded(Equal(3), cap=0.33), "cap.*0.33.*0.333333"),
        (lambda: Bounded(Equal(3), floor=-0.1), "floor.*-0.1"),
        (lambda: Bounded(Equal(3), cap=float("nan")), "cap.*nan"),
        (lambda: Bounded(), r"needs `inner`: call Bounded\(inner\)"),
        (lambda: Bounded(Equal(3), 0.1), "by position"),
        (lambda: Preference([1.0, -1.0, 1.0], Equal(3)), "preferences.*'1'.*-1.0"),
        (lambda: Preference([0, 0, 0], Equal(3)), "preferences.*zero"),
        (lambda: Preference({"a": 1.0, "b": 2.0}, Equal(TASKS)), "'c'"),
        (lambda: Preference({"d": 1.0}, Equal(TASKS)), "'d'"),
        (lambda: Tempered(0, Equal(3)), "temperature.*0"),
        (lambda: LogLosses(epsilon=1e-8), r"needs `inner`: call LogLosses\(inner\)"),
    ],
)
def test_options_are_refused_by_name(build: Any, words: str) -> None:
    with pytest.raises(OptionError, match=f"(?s){words}") as caught:
        build()
    assert "\n" not in str(caught.value)


def test_everything_may_be_given_by_name() -> None:
    inner = Equal(TASKS)
    for strategy in (
        Smoothed(share=0.9, inner=inner),
        Every(steps=2, inner=inner),
        WarmUp(duration=5, inner=inner),
        Bounded(floor=0.05, inner=inner),
        Preference(preferences=[1, 2, 3], inner=inner),
        Tempered(temperature=2, inner=inner),
        LogLosses(inner=inner),
    ):
        assert isinstance(strategy, Wrapper)
        assert strategy.inner is inner
        assert strategy.tasks == TASKS


def test_a_wrapper_of_your_own() -> None:
    class Squared(Wrapper):
        def change(self, weights: Tensor) -> Tensor:
            return weights**2

    strategy = Squared(DWA(3))
    for losses in ((4.0, 1.0, 1.0), (2.0, 0.5, 1.0)):
        close(solve(strategy, J, losses)[1], [1 / 9] * 3)
        strategy.end_epoch()
    wanted = torch.tensor((0.913513, 0.913513, 1.172974)) / 3
    close(strategy.weights, wanted**2)
    d, w = solve(strategy, J)
    close(w, wanted**2)
    close(d, w @ J)


# --- Smoothed ------------------------------------------------------------------------------------


def test_smoothed_is_the_moving_average() -> None:
    a, strategy, plain = 0.75, Smoothed(0.75, MGDA(3)), MGDA(3)
    average: Any = None
    record = []
    for step in range(6):
        w = weights_of(plain, seed=step)
        average = w if average is None else a * average + (1 - a) * w
        close(weights_of(strategy, seed=step), average)
        record.append(average)
    strategy.end_epoch()
    close(strategy.weights, torch.stack(record).mean(0))
    close(weights_of(strategy, seed=9), a * average + (1 - a) * weights_of(plain, seed=9))


@pytest.mark.parametrize("build", [MGDA, PCGrad, RLW, GLS, UW, DWA, DBMTL])
def test_smoothing_by_nothing_and_for_ever(build: Any) -> None:
    plain, identity, frozen = build(3), Smoothed(0.0, build(3)), Smoothed(1.0, build(3))
    first: Any = None
    for step in range(4):
        values = [1.0, 2.0 + step, 0.5]
        d, w = solve(plain, rows(step), values)
        same, again = solve(identity, rows(step), values)
        assert torch.equal(again, w)
        torch.testing.assert_close(same, d, rtol=1e-12, atol=0)
        _, kept = solve(frozen, rows(step), values)
        first = kept if first is None else first
        assert torch.equal(kept, first)


def test_averages_of_absent_tasks_stand_still() -> None:
    strategy = Smoothed(0.5, Equal(TASKS))
    close(weights_of(strategy, {"a": 1.0, "b": 1.0}), [0.5, 0.5, 0])
    close(weights_of(strategy), [5 / 12, 5 / 12, 1 / 3])  # the first of "c", taken as it is
    close(weights_of(strategy, {"c": 1.0}), [0, 0, 2 / 3])
    close(weights_of(strategy), [0.375, 0.375, 0.5])


def test_announced_weights_are_smoothed_once_an_epoch() -> None:
    """As quotas, and as what multiplies the losses: they are the same all through the epoch."""
    a, references = 0.6, torch.tensor([1.0, 2.0, 3.0])
    metrics = [[0.5, 2.0, 2.9], [0.6, 2.0, 2.9], [0.6, 2.0, 2.9], [0.8, 2.0, 2.9]]
    strategy, plain = Smoothed(a, FocalAchievement(3, references)), FocalAchievement(3, references)
    average = torch.full((3,), 1 / 3)
    for epoch in range(4):
        for step in range(5):
            close(weights_of(strategy, seed=step), average)
            weights_of(plain, seed=step)
        strategy.end_epoch(metrics[epoch])
        plain.end_epoch(metrics[epoch])
        average = a * average + (1 - a) * plain.weights  # also where they are as they were
        close(strategy.weights, average)


def test_announced_weights_without_a_step() -> None:
    """The validation of an untrained network comes before the first step."""
    strategy = Smoothed(0.6, FocalAchievement(3, [1.0, 2.0, 3.0]))
    strategy.end_epoch([0.5, 2.0, 2.0])
    first = strategy.inner.weights.clone()
    close(strategy.weights, first)
    close(weights_of(strategy), first)


def test_announced_weights_in_steps_that_change_them() -> None:
    """Tasks that are absent, a geometric mean, logarithms: the steps are followed in proportion."""
    references, metrics = [1.0, 1.0, 1.0], [0.5, 0.9, 0.7]
    values = {"0": 2.0, "1": 0.5, "2": 1.0}
    for inner in (
        Achievement(3, references, normalization="sum", total="arithmetic"),
        Achievement(3, references, normalization="sum"),
    ):
        strategy, plain = Smoothed(0.5, inner), copy.deepcopy(inner)
        strategy.end_epoch(metrics)
        plain.end_epoch(metrics)
        c = plain.weights.double()
        strategy.end_epoch([0.8, 0.6, 0.9])
        plain.end_epoch([0.8, 0.6, 0.9])
        now = plain.weights.double()
        averages = (c + now) / 2
        close(strategy.weights, averages)
        for _ in range(3):
            close(weights_of(strategy, values), weights_of(plain, values) * averages / now)
        part = {"0": 2.0, "2": 1.0}
        close(weights_of(strategy, part), weights_of(plain, part) * averages / now)
        close(strategy.averages, averages)


def test_a_weight_that_was_announced_as_zero_is_smoothed_too() -> None:
    options: dict[str, Any] = {"normalization": "sum", "total": "arithmetic", "margin": 0.0}
    strategy = Smoothed(0.5, Achievement(3, [1.0, 1.0, 1.0], smoothing=0.0, **options))
    strategy.end_epoch([0.5, 0.5, 1.0])
    close(weights_of(strategy), [0.5, 0.5, 0.0])
    strategy.end_epoch([0.5, 1.0, 1.0])
    for _ in range(2):
        close(weights_of(strategy), [0.75, 0.25, 0.0])


def test_what_is_not_announced_is_smoothed_step_by_step_in_later_epochs() -> None:
    for inner in (Bounded(MGDA(3), floor=0.1), WarmUp(1, MGDA(3)), Every(1, MGDA(3))):
        plain, strategy = copy.deepcopy(inner), Smoothed(0.5, inner)
        average: Any = None
        for epoch in range(3):
            for step in range(3):
                w = weights_of(plain, seed=3 * epoch + step)
                average = w if average is None else (average + w) / 2
                close(weights_of(strategy, seed=3 * epoch + step), average)
            plain.end_epoch()
            strategy.end_epoch()


# --- Every ---------------------------------------------------------------------------------------


class Counted:
    """Counts how often the trunk of a network is walked backwards."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.network = Network()

    def walks(self, step: int, present: tuple[str, ...] = TASKS) -> int:
        walks = [0]
        features, losses = losses_of(self.network, batch(step))
        assert features.grad_fn is not None
        features.grad_fn.register_hook(lambda *_: walks.__setitem__(0, walks[0] + 1))
        self.network.zero_grad()
        self.strategy({task: losses[task] for task in present}).backward()
        return walks[0]


@pytest.mark.parametrize("heads", ["plain", "weighted"])
def test_every_third_step_takes_the_gradients(heads: Any) -> None:
    strategy = Every(3, PCGrad(TASKS, heads=heads))
    run = Counted(strategy)
    kept: Any = None
    for step in range(9):
        assert run.walks(step) == (3 if step % 3 == 0 else 1)
        assert strategy.inner.step == step // 3 + 1
        if step % 3:
            assert torch.equal(strategy.weights, kept)
        kept = strategy.weights.clone()
    assert strategy.waits
    run.walks(9)
    assert not strategy.waits
    before = snapshot(strategy.inner)
    run.walks(10)
    assert same_bits(snapshot(strategy.inner), before)


def test_a_new_task_has_the_weights_computed() -> None:
    strategy = Every(4, MGDA(TASKS))
    run = Counted(strategy)
    steps = [
        (("a", "b"), 2),  # the first step
        (("a",), 1),
        (("a", "b", "c"), 3),  # "c" had no weight
        (("b", "c"), 1),
        (("a", "c"), 1),
        (("a", "b", "c"), 1),
        (("a", "b"), 2),  # the fourth after the computation
        (("b", "c"), 2),  # the weight of "c" is of another computation
    ]
    for step, (present, walks) in enumerate(steps):
        assert run.walks(step, present) == walks, step
        held = strategy.held[[TASKS.index(task) for task in present]]
        assert torch.equal(strategy.weights[[TASKS.index(task) for task in present]], held)
        assert strategy.weights.count_nonzero() <= len(present)


def test_an_epoch_begins_with_new_weights() -> None:
    strategy = Every(100, FocalAchievement(3, [1.0, 2.0, 3.0]))
    close(weights_of(strategy), [1 / 3] * 3)
    close(weights_of(strategy), [1 / 3] * 3)
    strategy.end_epoch([0.0, 2.0, 3.0])
    announced = strategy.weights.double()
    assert announced[0] > 0.5
    for _ in range(3):
        close(weights_of(strategy), announced)
    assert strategy.inner.step == 2
    strategy = Every(3, MGDA(3))
    record = [weights_of(strategy, seed=step) for step in range(5)]
    strategy.end_epoch()
    close(strategy.weights, torch.stack(record).mean(0))
    weights_of(strategy, seed=5)
    assert strategy.inner.step == 3


def test_every_single_step_changes_nothing() -> None:
    for build in (MGDA, DBMTL, GLS, RLW, DWA):
        plain, strategy = build(3), Every(1, build(3))
        for step in range(4):
            d, w = solve(plain, rows(step), [1.0, 2.0, 0.5])
            same, again = solve(strategy, rows(step), [1.0, 2.0, 0.5])
            assert torch.equal(same, d)
            assert torch.equal(again, w)


# --- WarmUp --------------------------------------------------------------------------------------


def test_warm_up_for_two_epochs() -> None:
    strategy = WarmUp(2, FocalAchievement(TASKS, [1.0, 2.0, 3.0]))
    metrics = [0.0, 2.0, 3.0]
    for _ in range(2):
        close(strategy.weights, [1 / 3] * 3)
        close(weights_of(strategy), [1 / 3] * 3)
        close(weights_of(strategy, {"a": 1.0, "c": 1.0}), [1 / 2, 0, 1 / 2])
        strategy.end_epoch(metrics)
    plain = FocalAchievement(TASKS, [1.0, 2.0, 3.0])
    plain.end_epoch(metrics)
    close(strategy.weights, plain.weights)  # the metrics of the warm-up were read
    close(weights_of(strategy), weights_of(plain))
    assert not strategy.warming


def test_warm_up_by_given_weights() -> None:
    strategy = WarmUp(2, MGDA(TASKS), unit="steps", weights={"a": 2, "b": 1, "c": 1})
    close(weights_of(strategy), [2, 1, 1])
    close(weights_of(strategy, {"b": 1.0, "c": 1.0}), [0, 2, 2])
    close(weights_of(strategy), weights_of(MGDA(TASKS)))
    strategy = WarmUp(2, MGDA(TASKS, rescale="tasks"), weights={"a": 2, "b": 1, "c": 1})
    close(weights_of(strategy), [1.5, 0.75, 0.75])
    strategy.end_epoch()
    close(strategy.weights, [1.5, 0.75, 0.75])


def test_losses_of_the_warm_up_are_seen() -> None:
    """So that DWA has its ratios, and UW its variances, when the warm-up is over."""
    strategy: Strategy
    strategy, plain = WarmUp(2, DWA(3)), DWA(3)
    for losses in ((4.0, 1.0, 1.0), (2.0, 0.5, 1.0)):
        solve(plain, J, losses)
        close(solve(strategy, J, losses)[1], [1 / 3] * 3)
        plain.end_epoch()
        strategy.end_epoch()
    close(strategy.weights, plain.weights)
    assert strategy.weights[2] > 0.38
    close(solve(strategy, J)[1], plain.weights)
    learned, reference = WarmUp(1, UW(3)), UW(3)
    for _ in range(5):
        solve(learned, J, [3.0, 1.0, 0.1])
        solve(reference, J, [3.0, 1.0, 0.1])
    learned.end_epoch()
    reference.end_epoch()
    close(learned.weights, reference.weights)
    assert torch.equal(solve(learned, J)[1], solve(reference, J)[1])


@pytest.mark.parametrize("heads", ["plain", "weighted"])
def test_gradients_of_the_warm_up_are_not_taken(heads: Any) -> None:
    strategy = WarmUp(2, LogLosses(PCGrad(TASKS, heads=heads)), unit="steps")
    run = Counted(strategy)
    assert not strategy.waits
    assert [run.walks(step) for step in range(4)] == [1, 1, 3, 3]
    assert strategy.inner.step == 2
    assert strategy.waits


def test_the_heads_are_treated_as_ever_in_a_warm_up() -> None:
    for heads in ("plain", "weighted"):
        network = Network().double()
        strategy = WarmUp(1, PCGrad(TASKS, heads=heads))
        _, losses = losses_of(network, batch(dtype=torch.float64))
        plain = {t: gradient_rows({t: losses[t]}, network.heads[t].parameters())[0] for t in TASKS}
        trunk = gradient_rows(losses, network.trunk.parameters())
        strategy(losses).backward()
        close(gradient_now(network.trunk.parameters()), trunk.mean(0))
        for task, head in network.heads.items():
            wanted = plain[task] if heads == "plain" else plain[task] / 3
            close(gradient_now(head.parameters()), wanted)


# --- Bounded -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "floor", "cap", "wanted"),
    [
        ((0.9, 0.05, 0.05), 0.1, 1.0, (0.8, 0.1, 0.1)),
        ((0.8, 0.15, 0.03, 0.02), 0.1, 1.0, (0.673684, 0.126316, 0.1, 0.1)),
        ((8.0, 1.5, 0.3, 0.2), 0.1, 1.0, (6.73684, 1.26316, 1.0, 1.0)),
        ((0.5, 0.3, 0.2), 0.1, 0.6, (0.5, 0.3, 0.2)),
        ((0.8, 0.1, 0.1), 0.0, 0.5, (0.5, 0.25, 0.25)),
        ((0.8, 0.15, 0.05), 0.0, 0.5, (0.5, 0.375, 0.125)),
        ((0.7, 0.26, 0.03, 0.01), 0.05, 0.5, (0.5, 0.4, 0.05, 0.05)),
        ((0.7, 0.28, 0.01, 0.01), 0.05, 0.4, (0.4, 0.4, 0.1, 0.1)),
        ((1.0, 0.0, 0.0), 0.1, 1.0, (0.8, 0.1, 0.1)),
        ((1.0, 0.0, 0.0), 0.0, 0.5, (0.5, 0.25, 0.25)),
        ((1.0, 0.0, 0.0), 0.0, 1.0, (1.0, 0.0, 0.0)),
        ((3.0, -2.0, 1.0), 0.1, 1.0, (2.7, 0.4, 0.9)),
        ((0.9, 0.05, 0.05), 1 / 3, 1.0, (1 / 3, 1 / 3, 1 / 3)),
        ((0.9, 0.05, 0.05), 0.0, 1 / 3, (1 / 3, 1 / 3, 1 / 3)),
        ((0.0, 0.0, 0.0), 0.1, 0.5, (0.0, 0.0, 0.0)),
        ((5.0,), 1.0, 1.0, (5.0,)),
    ],
)
def test_bounds(weights: Any, floor: float, cap: float, wanted: Any) -> None:
    given = torch.tensor(weights)
    close(bounded(given, floor, cap), wanted)
    close(bounded(given.double(), floor, cap), wanted)
    if all(w >= 0 for w in weights) and any(weights):
        strategy = Bounded(Fixed(len(weights), weights), floor=floor, cap=cap)
        w = weights_of(strategy)
        close(w, wanted)
        strategy.end_epoch()
        close(strategy.weights, wanted)


def filled(weights: Tensor, floor: float, cap: float) -> Tensor:
    """Returns the same by bisection."""
    total = weights.sum()
    low, high = 0.0, 1e40
    for _ in range(400):
        middle = (low * high) ** 0.5 if low else high / 1e3 if high > 1e-20 else 0.0
        if (middle * weights).clamp(floor * total, cap * total).sum() < total:
            low = middle
        else:
            high = middle
    return (high * weights).clamp(floor * total, cap * total)


@given(
    st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=8),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from([1e-12, 1.0, 1e6]),
)
def test_bounds_hold_and_ratios_stay(
    weights: list[float], floor: float, cap: float, scale: float
) -> None:
    n = len(weights)
    f, u = floor / n, 1 / n + cap * (1 - 1 / n)
    given_weights = scale * torch.tensor(weights, dtype=torch.float64)
    total = given_weights.sum()
    result = bounded(given_weights, f, u)
    assert result.sum() == pytest.approx(total.item(), rel=1e-9)
    assert (result >= f * total * (1 - 1e-12)).all()
    assert (result <= u * total * (1 + 1e-12)).all()
    torch.testing.assert_close(result, filled(given_weights, f, u), rtol=1e-6, atol=1e-9 * scale)
    torch.testing.assert_close(bounded(result, f, u), result, rtol=1e-9, atol=0)
    backwards = bounded(given_weights.flip(0), f, u).flip(0)
    torch.testing.assert_close(backwards, result, rtol=1e-9, atol=0)
    coarse = bounded(given_weights.float(), f, u)
    torch.testing.assert_close(coarse.double(), result, rtol=1e-4, atol=1e-6 * total.item())


@given(st.lists(st.sampled_from([0.0, 1e-30, 1e-9, 0.1, 1.0, 1e12]), min_size=1, max_size=7))
def test_bounds_of_weights_that_are_far_apart(weights: list[float]) -> None:
    n = len(weights)
    for dtype in (torch.float32, torch.float64):
        given_weights = torch.tensor(weights, dtype=dtype)
        result = bounded(given_weights, 0.5 / n, min(1.5 / n, 1.0))
        assert result.isfinite().all()
        total = given_weights.sum().item()
        assert result.sum().item() == pytest.approx(total, rel=1e-5)
        assert (result >= 0.5 / n * total * (1 - 1e-6)).all()
        assert (result <= 1.5 / n * total * (1 + 1e-6)).all()


def test_bounds_hold_of_what_becomes_quotas() -> None:
    strategy = Bounded(FocalAchievement(3, [10.0, 2.0, 3.0]), floor=0.1)
    for metrics in ([1.0, 2.0, 3.0], [9.5, 2.0, 3.0]):
        strategy.end_epoch(metrics)
        assert strategy.weights.sum() == pytest.approx(1)
        assert (strategy.weights >= 0.1 - 1e-7).all()
        close(weights_of(strategy), strategy.weights)
    assert strategy.inner.weights.min() > 0.1  # they do not bind a strategy that keeps them
    close(strategy.weights, strategy.inner.weights)


def test_bounds_hold_of_means_over_different_steps() -> None:
    """A mean of weights that are within the bounds need not be."""
    strategy = Bounded(Fixed(TASKS, [1.0, 0.0, 0.0]), floor=0.1)
    weights_of(strategy)
    for _ in range(9):
        close(weights_of(strategy, {"a": 1.0}), [1.0, 0, 0])
    mean = strategy.epoch_weights.mean(default=strategy.weights)
    assert mean[1] / mean.sum() < 0.099
    strategy.end_epoch()
    assert (strategy.weights / strategy.weights.sum() >= 0.1 - 1e-7).all()


def test_a_cap_in_a_step_without_some_tasks() -> None:
    strategy = Bounded(Fixed(TASKS, [8.0, 1.0, 1.0]), cap=0.4)
    close(weights_of(strategy), [4.0, 3.0, 3.0])
    close(weights_of(strategy, {"a": 1.0, "b": 1.0}), [4.5, 4.5, 0])
    close(weights_of(strategy, {"a": 1.0}), [8.0, 0, 0])


def test_a_floor_gives_a_gradient_to_tasks_without_weight() -> None:
    jacobian = torch.tensor([[1.0, 0.0], [5.0, 0.5]], dtype=torch.float64)
    _, w = solve(MGDA(2), jacobian)
    close(w, [1.0, 0.0])
    d, w = solve(Bounded(MGDA(2), floor=0.2), jacobian)
    close(w, [0.8, 0.2])
    close(d, w @ jacobian)


# --- Preference and Tempered ---------------------------------------------------------------------


def test_preferences() -> None:
    strategy = Preference({"c": 2, "a": 1, "b": 1}, Fixed(TASKS, [0.5, 0.3, 0.2]))
    wanted = torch.tensor([0.5, 0.3, 0.4]) / 1.2
    close(weights_of(strategy), wanted)
    close(weights_of(strategy, {"a": 1.0, "c": 1.0}), [0.7 * 5 / 9, 0, 0.7 * 4 / 9])
    other = Preference([10, 10, 20], Fixed(TASKS, [5.0, 3.0, 2.0]))
    close(weights_of(other), 10 * wanted)
    one = Preference([1, 0, 0], Equal(TASKS))
    close(weights_of(one), [1, 0, 0])
    close(weights_of(one, {"b": 1.0, "c": 1.0}), [0, 0, 0])


def test_preferences_around_gradients_that_are_remembered() -> None:
    """Each task's part of the gradient follows its weight."""
    plain, strategy = DBMTL(3), Preference([1, 1, 3], DBMTL(3))
    for step in range(3):
        values = [1.0, 2.0, 0.5]
        _, w = solve(plain, rows(step), values)
        d, preferred = solve(strategy, rows(step), values)
        factor = preferred / w
        close(factor[0], factor[1])
        close(factor[2], 3 * factor[0])
        close(preferred.sum(), w.sum())
        averages = plain.averages.double()
        scales = averages.norm(dim=1).max() / averages.norm(dim=1)
        close(d, (factor * scales) @ averages)


def test_preferences_are_announced() -> None:
    strategy = Preference([1, 1, 2], DTP(TASKS))
    inner = DTP(TASKS)
    strategy.end_epoch([0.5, 0.8, 0.9])
    inner.end_epoch([0.5, 0.8, 0.9])
    w = inner.weights * torch.tensor([1.0, 1.0, 2.0])
    close(strategy.weights, w * inner.weights.sum() / w.sum())
    close(weights_of(strategy), strategy.weights)


class Signed(LossStrategy):
    """Weights below zero, as some that read gradients have."""

    def scalarize(self, losses: Tensor) -> Tensor:
        return (losses.new_tensor([2.0, -1.0, 1.0]) * losses).sum()


def test_negative_weights() -> None:
    close(weights_of(Preference([1, 4, 1], Signed(3))), [8 / 7, -16 / 7, 4 / 7])
    close(weights_of(Tempered(0.5, Signed(3))), [8 / 3, -2 / 3, 2 / 3])
    close(weights_of(Bounded(Signed(3), floor=0.1)), [1.8, 0.3, 0.9])


@pytest.mark.parametrize(
    ("temperature", "wanted"),
    [
        (1.0, (0.5, 0.3, 0.2, 0.0)),
        (0.5, (25 / 38, 9 / 38, 4 / 38, 0.0)),
        (1e6, (1 / 3, 1 / 3, 1 / 3, 0.0)),
        (1e-3, (1.0, 0.0, 0.0, 0.0)),
    ],
)
def test_temperatures(temperature: float, wanted: tuple[float, ...]) -> None:
    for scale in (1e-20, 1.0, 1e20):
        weights = [scale * w for w in (0.5, 0.3, 0.2, 0.0)]
        strategy = Tempered(temperature, Fixed(4, weights))
        close(weights_of(strategy) / scale, wanted)
        strategy.end_epoch()
        close(strategy.weights / scale, wanted)
    zeros = Tempered(temperature, Preference([1, 0], Equal(2)))
    close(weights_of(zeros, {"1": 1.0}), [0, 0])


def test_temperatures_are_announced() -> None:
    strategy = Tempered(0.25, Achievement(2, [1.0, 1.0], margin=0.0))
    strategy.end_epoch([0.5, 0.9])
    inner = strategy.inner.weights
    close(strategy.weights[0] / strategy.weights[1], (inner[0] / inner[1]) ** 4)
    assert strategy.weights.sum() == pytest.approx(1)


# --- one within another --------------------------------------------------------------------------


def test_logarithms_within() -> None:
    """The weights smoothed are those of the losses themselves."""
    strategy, plain = Smoothed(0.9, LogLosses(MGDA(3))), LogLosses(MGDA(3))
    average: Any = None
    for step in range(4):
        values = [1.0 + step, 2.0, 0.5]
        _, w = solve(plain, rows(step), values)
        average = w if average is None else 0.9 * average + 0.1 * w
        d, smoothed = solve(strategy, rows(step), values)
        close(smoothed, average)
        close(d, smoothed @ rows(step))


def test_bounds_around_every_third_step() -> None:
    strategy, plain = Bounded(Every(3, PCGrad(TASKS)), floor=0.3), Every(3, PCGrad(TASKS))
    run = Counted(strategy)
    assert [run.walks(step) for step in range(7)] == [3, 1, 1, 3, 1, 1, 3]
    strategy = Bounded(Every(3, PCGrad(TASKS)), floor=0.3)
    for step in range(7):
        close(weights_of(strategy, seed=step), bounded(weights_of(plain, seed=step), 0.3, 1.0))


def test_every_around_logarithms() -> None:
    """The weights kept are those of the losses: a step between is their weighted sum."""
    strategy = Every(3, LogLosses(MGDA(3)))
    for step in range(3):
        d, w = solve(strategy, rows(step), [1.0 + step, 2.0, 0.5])
        close(d, w @ rows(step))
        close(w, strategy.held)


def test_evaluation_goes_by_the_mean_of_the_changed_weights() -> None:
    strategy = Bounded(RLW(TASKS), floor=0.2)
    record = torch.stack([weights_of(strategy) for _ in range(5)])
    strategy.eval()
    _, losses = plane(J, [1.0, 2.0, 3.0])
    wanted = (record.mean(0) * torch.tensor([1.0, 2.0, 3.0])).sum()
    assert strategy(losses).item() == pytest.approx(wanted.item(), rel=1e-5)
