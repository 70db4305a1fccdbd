"""What must hold for every strategy whatever the numbers are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlweight import MGDA, AvgNorm, PCGrad, Strategy
from mtlweight.solvers import min_norm_point
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
    gradient_rows,
    losses_of,
    metrics_of,
    plane,
    replay,
    same_bits,
    snapshot,
    solve,
)

EXACT = [case for case in CASES if case.deterministic and not case.in_turn]


def random_jacobian(seed: int, tasks: int = 3, numbers: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, numbers, generator=generator, dtype=torch.float64)


def trained(case: Case, tasks: Any = TASKS, **options: Any) -> Strategy:
    """Returns the strategy after two epochs of two steps, so that its weights are its own."""
    names = [str(i) for i in range(tasks)] if isinstance(tasks, int) else list(tasks)
    strategy = case.build(tasks, **options)
    for epoch in range(2):
        for step in range(2):
            jacobian = torch.stack(
                [random_jacobian(10 * epoch + step + sum(map(ord, name)), 1)[0] for name in names]
            )
            values = [1.0 + 0.1 * (sum(map(ord, name)) % 5) - 0.3 * epoch for name in names]
            solve(strategy, jacobian, values)
        strategy.end_epoch(metrics_of(names, shift=0.01 * epoch))
    return strategy


# --- the gradient is what is said ----------------------------------------------------------------


@pytest.mark.parametrize("heads", ["paper", "plain", "weighted"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_reported_weights_are_the_true_ones(case: Case, heads: str) -> None:
    if not case.gradients and heads != "paper":
        with pytest.raises(ValueError, match="heads"):
            case.build(TASKS, heads=heads)
        return
    options = {"heads": heads} if case.gradients else {}
    network = Network().double()
    strategy = case.build(TASKS, **options)
    for step in range(4):
        network.zero_grad()
        _, losses = losses_of(network, batch(step, dtype=torch.float64))
        trunk = gradient_rows(losses, network.trunk.parameters())
        own = {
            task: gradient_rows({task: losses[task]}, head.parameters())[0]
            for task, head in network.heads.items()
        }
        learned = getattr(strategy, "log_scales", torch.zeros(3)).double().exp()
        strategy(losses).backward()
        weights = strategy.weights.double()
        got = gradient_now(network.trunk.parameters())
        if case.expressible or (step == 0 and not case.masked):
            torch.testing.assert_close(got, weights @ trunk, rtol=2e-6, atol=1e-7)
        elif case.masked:  # the weights are shares of what is in the gradients
            assert ((weights >= 0) & (weights <= 1)).all()
            assert (got <= trunk.clamp_min(0).sum(0) + 1e-9).all()
            assert (got >= trunk.clamp_max(0).sum(0) - 1e-9).all()
        for task, head in network.heads.items():
            i, slope = TASKS.index(task), 1 / (losses[task].detach() + 1e-8)
            if not case.gradients:
                factor = weights[i]
            else:
                factor = {
                    "weight": weights[i],
                    "one": torch.ones_like(slope),
                    "log": slope,
                    "scale": learned[i],
                    "plain": slope if case.logs else torch.ones_like(slope),
                    "weighted": weights[i],
                }[case.heads if heads == "paper" else heads]
            got = gradient_now(head.parameters())
            torch.testing.assert_close(got, factor * own[task], rtol=2e-6, atol=1e-7)
        if step % 2:
            strategy.end_epoch(metrics_of(TASKS))


@pytest.mark.parametrize("case", OF_GRADIENTS, ids=str)
@pytest.mark.parametrize("heads", ["plain", "weighted"])
def test_shared_found_given_as_parameters_or_as_features(case: Case, heads: str) -> None:
    """Features that are the parameters themselves, as one item: all ways must agree.

    But for gradients remembered from the past, which features, being other samples' each time,
    don't have.
    """
    results = []
    modes = ["found", "parameters", "stacked"] + ["features"] * (not case.remembers)
    for mode in modes:
        theta = torch.linspace(0.2, 1.5, 6, dtype=torch.float64).requires_grad_()
        own = torch.ones(3, 6, dtype=torch.float64).unbind()
        own = tuple(head.clone().requires_grad_() for head in own)
        strategy = case.build(TASKS, heads=heads)
        for step in range(3):
            features = theta[None] * 1.0
            jacobian = random_jacobian(step)

            def losses_from(features: Tensor, jacobian: Tensor = jacobian) -> list[Tensor]:
                return [
                    2 + (row * head * features.tanh()).sum().square()
                    for row, head in zip(jacobian, own, strict=True)  # noqa: B023
                ]

            losses = losses_from(features)
            replay(lambda losses_from=losses_from, theta=theta: losses_from(theta[None] * 1.0))
            shared = {"parameters": [theta], "features": features}.get(mode)
            given_losses: Any = torch.stack(losses) if mode == "stacked" else losses
            strategy(given_losses, shared=shared).backward()
        results.append((gradient_now([theta, *own]), strategy.weights))
    for gradient, weights in results[1:]:
        torch.testing.assert_close(gradient, results[0][0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(weights, results[0][1])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_how_often_the_network_is_walked_backwards(case: Case) -> None:
    network = Network()
    strategy = case.build(TASKS)
    for step in range(2):
        walks = [0]

        def count(gradient: Tensor, walks: list[int] = walks) -> None:
            walks[0] += 1

        features, losses = losses_of(network, batch(step))
        hidden = features.grad_fn
        assert hidden is not None
        hidden.register_hook(lambda *_: count(torch.empty(0)))
        strategy(losses).backward()
        assert walks[0] == case.walks
        strategy.end_epoch(metrics_of(TASKS))


@pytest.mark.parametrize("case", [c for c in OF_GRADIENTS if not c.looks_ahead], ids=str)
def test_features_walk_the_trunk_once(case: Case) -> None:
    network = Network()
    strategy = case.build(TASKS)
    features, losses = losses_of(network, batch())
    walks = {"trunk": 0}
    below = network.trunk[0]
    assert features.grad_fn is not None
    node = features.grad_fn
    while node.next_functions and node.name() != "AddmmBackward0":
        node = node.next_functions[0][0]
    node.register_hook(lambda *_: walks.update(trunk=walks["trunk"] + 1))
    strategy(losses, shared=features).backward()
    assert below.weight.grad is not None
    assert walks["trunk"] == 1


# --- scales --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_the_order_of_tasks_does_not_matter(case: Case) -> None:
    for seed in range(5):
        rows = dict(zip(TASKS, random_jacobian(seed), strict=True))
        values = dict(zip(TASKS, (0.7, 1.3, 2.9), strict=True))
        results = []
        for order in (("a", "b", "c"), ("c", "a", "b"), ("b", "a", "c")):
            strategy = trained(case, order)
            jacobian = torch.stack([rows[task] for task in order])
            d, _ = solve(strategy, jacobian, [values[task] for task in order])
            results.append((d, strategy.named_weights))
        for d, weights in results[1:]:
            assert weights == pytest.approx(results[0][1], rel=1e-5)
            torch.testing.assert_close(d, results[0][0], rtol=1e-5, atol=1e-6)


SCALES = (1e-3, 7.0, 1e4)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.logs and case.degree == 0], ids=str
)
def test_the_scale_of_one_task_does_not_change_the_gradients_of_logarithms(case: Case) -> None:
    for scale in SCALES:
        jacobian, values = random_jacobian(3), torch.tensor([1.0, 2.0, 3.0]).double()
        c = torch.tensor([1.0, scale, 1.0]).double()
        d, _ = solve(case.build(3), jacobian, values)
        scaled, _ = solve(case.build(3), c[:, None] * jacobian, c * values)
        torch.testing.assert_close(scaled, d, rtol=1e-4, atol=1e-4)


RELATIVE = ("relobralo", "lbtw", "cov", "group_dro", "excess_mtl")  # go by ratios to the past


@pytest.mark.parametrize(
    "name", ["equal", "fixed", "rlw", "dwa", "focal_achievement", "dtp", "fmtl", *RELATIVE]
)
def test_the_scale_of_one_task_does_not_change_the_weights(name: str) -> None:
    weights = []
    for c in (torch.ones(3), torch.tensor([1.0, 1e3, 1.0])):
        strategy = BY_NAME[name].build(3)
        for epoch in range(3):
            values = (c * torch.tensor([2.0, 1.0, 3.0]) / (1 + epoch * torch.arange(3))).double()
            solve(strategy, c[:, None] * random_jacobian(epoch), values)
            strategy.end_epoch(metrics_of("012"))
        weights.append(strategy.weights)
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rescale", ["none", "one", "tasks", "equal-norm"])
@pytest.mark.parametrize("case", [case for case in CASES if not case.logs], ids=str)
def test_rescale(case: Case, rescale: Any) -> None:
    if case.wrapped and rescale == "equal-norm":
        return  # the length is that of the gradient before the wrapper changed it
    reference = case.build(TASKS)
    strategy = case.build(TASKS, rescale=rescale)
    for step in range(4):
        jacobian = random_jacobian(step)
        values = [1.5 + step, 0.8, 2.0]
        plain, _ = solve(reference, jacobian, values)
        d, w = solve(strategy, jacobian, values)
        if case.in_turn and step < 2:
            assert not d.any()
            continue
        assert torch.nn.functional.cosine_similarity(d, plain, dim=0) > 1 - 1e-5
        if rescale == "one":
            assert w.sum() == pytest.approx(1, rel=1e-5)
        elif rescale == "tasks":
            assert w.sum() == pytest.approx(3, rel=1e-5)
        elif rescale == "equal-norm":
            assert d.norm() == pytest.approx(jacobian.mean(0).norm().item(), rel=1e-5)
        else:
            assert torch.equal(d, plain)
        if case.expressible:
            torch.testing.assert_close(d, w @ jacobian, rtol=1e-5, atol=1e-6)
        reference.end_epoch(metrics_of(TASKS, 0.01 * step))
        strategy.end_epoch(metrics_of(TASKS, 0.01 * step))
        if rescale in ("one", "tasks"):
            total = strategy.weights.sum().item()
            assert total == pytest.approx(1 if rescale == "one" else 3, rel=1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("present", [("a", "c"), ("c",)])
def test_absent_tasks(case: Case, present: tuple[str, ...]) -> None:
    """They get no weight, and what is kept of them stays; the others share what there is."""
    network = Network()
    strategy = case.build(TASKS)
    for step in range(2):
        _, losses = losses_of(network, batch(step))
        strategy(losses).backward()
        strategy.end_epoch(metrics_of(TASKS))
    before = snapshot(strategy)
    network.zero_grad()
    _, losses = losses_of(network, batch(5))
    strategy({task: losses[task] for task in present}).backward()
    assert gradient_now(network.parameters()).isfinite().all()
    after = snapshot(strategy)
    for task in TASKS:
        i = TASKS.index(task)
        if task in present:
            weight = strategy.named_weights[task]
            assert weight > 0 or (weight < 0 and case.signed) or (weight == 0 and case.sparse)
            continue
        assert strategy.named_weights[task] == 0
        assert network.heads[task].weight.grad is None
        for name, old in before.items():
            per_task = isinstance(old, Tensor) and old.shape[:1] == (len(TASKS),)
            if per_task and name.split(".")[-1] != "weights":
                assert same_bits(after[name][i], old[i]), f"{name} of the absent {task!r} changed"
    if case.one:
        assert strategy.weights.sum() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tasks_that_alternate(case: Case) -> None:
    """Batches that hold one task each: plain training of that task, nothing lost between.

    What is shared is found out in the second step, and gradients are averaged from then on.
    """
    network = Network().double()
    strategy = case.build(TASKS)
    for step in range(9):
        task = TASKS[step % 3]
        network.zero_grad()
        _, losses = losses_of(network, batch(step, dtype=torch.float64))
        rows = gradient_rows({task: losses[task]}, network.trunk.parameters())
        strategy({task: losses[task]}).backward()
        weights = strategy.weights.double()
        got = gradient_now(network.trunk.parameters())
        if case.expressible or step == 0:
            assert torch.nn.functional.cosine_similarity(got, rows[0], dim=0) > 1 - 1e-6
            torch.testing.assert_close(got, weights[step % 3] * rows[0], rtol=1e-5, atol=1e-8)
        assert got.isfinite().all()
        assert weights[step % 3] > 0
        assert weights.count_nonzero() == 1
        if step % 3 == 2:
            strategy.end_epoch(metrics_of(TASKS))
            assert (strategy.weights > 0).all()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_signs_of_the_weights(case: Case) -> None:
    """Some weight is negative, or zero, where the case says so, and only there."""
    negative = zero = False
    for seed, tasks in enumerate((3, 2, 4) * 8):
        strategy = case.build(tasks)
        generator = torch.Generator().manual_seed(seed)
        lengths = 10 ** (1.5 * torch.rand(tasks, 1, generator=generator).double())
        jacobian = lengths * random_jacobian(seed, tasks, 1 + seed % 6)
        for _ in range(6):
            values = 0.05 + 2 * torch.rand(tasks, generator=generator).double()
            _, w = solve(strategy, jacobian, values)
            negative |= bool((w < 0).any())
            zero |= bool((w == 0).any())
        if case.signed <= negative and case.sparse <= zero and (case.signed or case.sparse):
            break
    assert negative == case.signed
    assert zero == case.sparse


# --- random Jacobians ----------------------------------------------------------------------------

KINDS = ("any", "deficient", "duplicate", "opposite", "zero", "scaled", "near duplicate")


@st.composite
def jacobians(draw: st.DrawFn, tasks: tuple[int, int] = (1, 6)) -> Tensor:
    n = draw(st.integers(*tasks))
    p = draw(st.integers(1, 8))
    kind = draw(st.sampled_from(KINDS))
    jacobian = random_jacobian(draw(st.integers(0, 10**6)), n, p)
    i, j = draw(st.integers(0, n - 1)), draw(st.integers(0, n - 1))
    if kind == "deficient":
        jacobian = random_jacobian(draw(st.integers(0, 99)), n, 2) @ jacobian[:1].expand(2, p)
    elif kind == "duplicate":
        jacobian[i] = jacobian[j]
    elif kind == "near duplicate":
        jacobian[i] = jacobian[j] * (1 + 1e-9)
    elif kind == "opposite" and i != j:
        jacobian[i] = -jacobian[j] * draw(st.sampled_from((1.0, 0.5, 3.0)))
    elif kind == "zero":
        jacobian[i] = 0.0
    elif kind == "scaled":
        exponents = draw(st.lists(st.integers(-12, 12), min_size=n, max_size=n))
        jacobian = jacobian * torch.tensor([10.0**e for e in exponents]).double()[:, None]
    return jacobian


@settings(max_examples=60)
@given(jacobians())
def test_always_finite(jacobian: Tensor) -> None:
    for case in OF_GRADIENTS:
        strategy = case.build(len(jacobian))
        for _ in range(2):
            d, w = solve(strategy, jacobian)
            assert d.isfinite().all(), case.name
            assert w.isfinite().all(), case.name
            if case.expressible:
                bound = (w.abs()[:, None] * jacobian.abs()).sum(0)
                assert ((d - w @ jacobian).abs() <= 1e-5 * bound + 1e-30).all(), case.name


def conflicts(jacobian: Tensor, d: Tensor) -> Tensor:
    """Returns the cosines of d with the gradients; zero for vectors that vanish."""
    norms = jacobian.norm(dim=1) * d.norm()
    return torch.where(norms > 0, (jacobian @ d) / norms, 0.0)


@settings(max_examples=200)
@given(jacobians())
@example(torch.tensor([[1e6, 0.0, 0.0], [1.0, 1.0, 0.0], [-1.1, 1.0, 0.0]]).double())
@example(torch.tensor([[1e8, 1e8], [1.0, 2.0], [-1.5, 1.0]]).double())
@example(torch.tensor([[1.0, 0.0], [-1.0, 1e-7]]).double())
def test_mgda_is_the_shortest_vector_of_the_hull(jacobian: Tensor) -> None:
    w = min_norm_point(jacobian @ jacobian.T)
    assert (w >= 0).all()
    assert w.sum() == pytest.approx(1, abs=1e-12)
    d = w @ jacobian
    # The digits that a Gram matrix in double precision holds of a row of the hull's size.
    noise = 1e-7 * (w[:, None] * jacobian.abs()).sum(0).norm()
    slopes, square = jacobian @ d, d @ d
    for i in range(len(w)):
        allowed = noise * jacobian[i].norm()
        assert slopes[i] >= square - allowed, "a task is hurt, or there is a shorter vector"
        if w[i] > 1e-6:
            assert slopes[i] <= square + max(allowed, noise * jacobian.norm(dim=1).max())


@settings(max_examples=100)
@given(jacobians())
@example(torch.tensor([[1e6, 0.0, 0.0], [1.0, 1.0, 0.0], [-1.1, 1.0, 0.0]]).double())
def test_mgda_never_hurts_a_task(jacobian: Tensor) -> None:
    d, w = solve(MGDA(len(jacobian)), jacobian)
    size = (w[:, None] * jacobian.abs()).sum(0).norm()
    assume(d.norm() > 1e-6 * size)  # else it is rounding alone
    assert (conflicts(jacobian, d) >= -1e-5).all()


@settings(max_examples=100)
@given(jacobians(tasks=(2, 2)))
def test_pcgrad_with_two_tasks(jacobian: Tensor) -> None:
    d, _ = solve(PCGrad(2), jacobian)
    a, b = jacobian
    wanted = a + b
    if a @ b < 0:
        wanted = (a - (a @ b) / (b @ b) * b) + (b - (a @ b) / (a @ a) * a)
    size = jacobian.abs().max()
    torch.testing.assert_close(d, wanted, rtol=1e-6, atol=1e-6 * size.item() + 1e-300)
    if d.norm() > 1e-6 * jacobian.norm(dim=1).min():
        assert (conflicts(jacobian, d) >= -1e-5).all()


@settings(max_examples=60)
@given(jacobians(tasks=(2, 6)))
def test_avg_norm_makes_all_the_same_length(jacobian: Tensor) -> None:
    norms = jacobian.norm(dim=1)
    assume((norms > 1e-6 * norms.max()).all())
    assume(norms.max() > 0)
    _, w = solve(AvgNorm(len(jacobian)), jacobian)
    lengths = w * norms
    total = jacobian.sum(0).norm().item()
    assert lengths.tolist() == pytest.approx(
        [total] * len(w), rel=1e-5, abs=1e-6 * norms.max().item()
    )


# --- the value returned ------------------------------------------------------------------------


@pytest.mark.parametrize("case", OF_GRADIENTS, ids=str)
def test_gradient_strategies_are_worth_the_weighted_sum(case: Case) -> None:
    _, losses = plane(random_jacobian(1), [1.0, 2.0, 3.0])
    strategy = case.build(TASKS)
    total = strategy(losses).item()
    values = torch.tensor([1.0, 2.0, 3.0]).double()
    if case.logs:
        weights, values = strategy.weights.double() * values, (values + 1e-8).log()
    else:
        weights = strategy.weights.double()
    assert total == pytest.approx((weights * values).sum().item(), rel=1e-5)


@pytest.mark.parametrize("case", [case for case in OF_LOSSES if not case.wrapped], ids=str)
def test_the_gradient_belongs_to_the_value(case: Case) -> None:
    """By differences: the scalar is a function of the losses, and its slopes are the weights.

    They are other numbers where what depends on the losses is held constant in the derivative.
    """
    gap, values = 1e-4, torch.tensor([1.0, 2.0, 3.0]).double()
    start = trained(case)
    _, losses = plane(random_jacobian(1), [0.9, 2.2, 3.1])
    start(losses)  # not the first step of an epoch

    def value_at(values: Tensor) -> tuple[float, Tensor]:
        strategy = copy.deepcopy(start)
        _, losses = plane(random_jacobian(0), values)
        return strategy(losses).item(), strategy.weights

    slopes = []
    for i in range(3):
        shift = gap * torch.eye(3).double()[i]
        slopes.append((value_at(values + shift)[0] - value_at(values - shift)[0]) / (2 * gap))
    same = value_at(values)[1].tolist() == pytest.approx(slopes, rel=1e-3, abs=1e-5)
    assert same != case.constants, slopes


@pytest.mark.parametrize("case", CASES, ids=str)
def test_eval_records_nothing(case: Case) -> None:
    strategy = trained(case).eval()
    before = snapshot(strategy)
    losses = torch.tensor([1.0, 2.0, 3.0])
    with torch.no_grad():
        total = strategy(losses)
    assert total.item() == pytest.approx((strategy.weights * losses).sum().item())
    assert same_bits(snapshot(strategy), before)
