from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mtlweight import MGDA, LogLosses, MoDo, SDMGrad
from mtlweight.products import exact_products
from tests.contract.strategies import (
    TASKS,
    Network,
    batch,
    gradient_now,
    gradient_rows,
    losses_of,
    solve,
)
from tests.contract.test_vectors import J3

MGDA_ON_J3 = (0.294872, 0.423077, 0.282051)
BUILDS: list[Any] = [MoDo, SDMGrad]


def jacobian(seed: int, tasks: int = 3, numbers: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, numbers, generator=generator, dtype=torch.float64)


def step_on(strategy: Any, *jacobians: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradient of one step on the first of some batches, and the weights."""
    theta = torch.zeros(jacobians[0].shape[1], dtype=torch.float64, requires_grad=True)
    first, *others = ([row @ theta + 1 for row in rows] for rows in jacobians)
    strategy(first, independent=others).backward()
    assert theta.grad is not None
    return theta.grad, strategy.weights.double()


def nearest(x: Tensor) -> Tensor:
    """Returns the closest point of the simplex, by bisection on the shift."""
    low, high = x.min() - 1, x.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (x - middle).clamp_min(0).sum() > 1 else (low, middle)
    return (x - low).clamp_min(0)


# --- MoDo ----------------------------------------------------------------------------------------


def test_modo_on_three_tasks() -> None:
    d, w = solve(MoDo(3, step_size=0.01, rho=0.1), J3)
    assert w.tolist() == pytest.approx([0.33, 0.34, 0.33], abs=1e-6)
    torch.testing.assert_close(d, w @ J3, rtol=1e-6, atol=1e-6)


def test_modo_ends_at_the_weights_of_mgda() -> None:
    strategy = MoDo(3, step_size=0.1, rho=0)
    for _ in range(50):
        _, w = step_on(strategy, J3, J3, J3)
    assert w.tolist() == pytest.approx(MGDA_ON_J3, abs=1e-5)


def test_modo_of_three_batches() -> None:
    """The second and the third are measured, the first is spent on."""
    strategy, shares = MoDo(3, step_size=0.05, rho=0.3), torch.full((3,), 1 / 3).double()
    for step in range(5):
        first, second, third = (jacobian(10 * step + i) for i in range(3))
        shares = nearest(shares - 0.05 * (second @ third.T @ shares + 0.3 * shares))
        d, w = step_on(strategy, first, second, third)
        torch.testing.assert_close(w, shares, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(d, w @ first, rtol=1e-6, atol=1e-7)


def test_modo_of_two_batches() -> None:
    first, second = jacobian(0), jacobian(1)
    shares = torch.full((3,), 1 / 3).double()
    shares = nearest(shares - 0.05 * (first @ second.T @ shares + 0.1 * shares))
    d, w = step_on(MoDo(3, step_size=0.05), first, second)
    torch.testing.assert_close(w, shares, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(d, w @ first, rtol=1e-6, atol=1e-7)


def test_modo_with_absent_tasks() -> None:
    strategy = MoDo(TASKS, step_size=0.05, rho=0)
    solve(strategy, jacobian(0))
    before = strategy.shares.double()
    theta = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    rows = jacobian(1)
    strategy({"a": rows[0] @ theta, "c": rows[2] @ theta}, shared=[theta])
    here, two = before[[0, 2]] / before[[0, 2]].sum(), rows[[0, 2]]
    wanted = nearest(here - 0.05 * two @ two.T @ here)
    assert strategy.weights[1] == 0
    torch.testing.assert_close(strategy.weights.double()[[0, 2]], wanted, rtol=1e-5, atol=1e-6)
    assert strategy.shares[1] == before[1]
    assert strategy.shares.sum().item() == pytest.approx(1)


def test_independent_batches_take_the_bias_out() -> None:
    """Noise makes the Gram matrix of one batch too large on its diagonal, but not A."""
    noise = torch.tensor([0.0, 0.0, 3.0]).double()[:, None]
    ends = []
    for independent in (True, False):
        strategy = MoDo(3, step_size=0.01, rho=0)
        tail = []
        for step in range(400):
            rows = [J3 + noise * jacobian(3 * step + i, numbers=4) for i in range(3)]
            _, w = step_on(strategy, *(rows if independent else rows[:1]))
            tail.append(w)
        ends.append(torch.stack(tail[100:]).mean(0))
    true = torch.tensor(MGDA_ON_J3).double()
    assert (ends[0] - true).abs().max() < 0.05
    assert (ends[1] - true).abs().max() > 0.15


# --- SDMGrad -------------------------------------------------------------------------------------


def test_sdmgrad_on_three_tasks() -> None:
    d, w = solve(SDMGrad(3), J3)
    assert w.tolist() == pytest.approx(MGDA_ON_J3, abs=1e-6)
    torch.testing.assert_close(d, w @ J3, rtol=1e-6, atol=1e-6)
    # The published solver would jump from corner to corner here.
    strategy = SDMGrad(3)
    for _ in range(5):
        _, w = step_on(strategy, J3, J3, J3)
        assert w.tolist() == pytest.approx(MGDA_ON_J3, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_sdmgrad_between_mgda_and_the_mean(seed: int) -> None:
    rows = jacobian(seed, 4)
    d, w = solve(SDMGrad(4, lambda_=0), rows)
    shortest, _ = solve(MGDA(4), rows)
    torch.testing.assert_close(d, shortest, rtol=1e-6, atol=1e-6)
    _, w = solve(SDMGrad(4, lambda_=1e9), rows)
    assert w.tolist() == pytest.approx([0.25] * 4, abs=1e-6)


@given(st.integers(0, 10**6), st.floats(0, 5), st.integers(2, 6))
def test_sdmgrad_is_the_minimum(seed: int, lam: float, tasks: int) -> None:
    rows = jacobian(seed, tasks)
    scales = 10 ** torch.linspace(-2, 2, tasks).double()
    rows = scales[:, None] * rows
    d, w = solve(SDMGrad(tasks, lambda_=lam), rows)
    own = (1 + lam) * w - lam / tasks  # the w of the minimum
    assert own.sum().item() == pytest.approx(1, abs=1e-5)
    assert (own >= -1e-5).all()
    # No task has a smaller product with the direction than those that have a weight.
    slopes = rows @ d
    size = rows.norm(dim=1) * d.norm()
    assert (slopes - own @ slopes >= -1e-4 * size.max()).all()


def test_sdmgrad_of_three_batches() -> None:
    """The symmetric part of A, without directions of negative length."""
    found = 0
    for seed in range(20):
        first, second, third = (jacobian(100 * seed + i) for i in range(3))
        d, w = step_on(SDMGrad(3, lambda_=0.5), first, second, third)
        torch.testing.assert_close(d, w @ first, rtol=1e-6, atol=1e-6)
        own = 1.5 * w - 0.5 / 3
        assert (own >= -1e-6).all()
        assert w.sum().item() == pytest.approx(1, abs=1e-6)
        a = (second @ third.T + third @ second.T) / 2
        found += int(torch.linalg.eigvalsh(a)[0] < 0)
    assert found > 5


def test_sdmgrad_of_nearly_equal_batches_is_that_of_one() -> None:
    rows = jacobian(0)
    _, w = step_on(SDMGrad(3), rows, rows + 1e-9 * jacobian(1), rows + 1e-9 * jacobian(2))
    _, wanted = solve(SDMGrad(3), rows)
    torch.testing.assert_close(w, wanted, rtol=1e-5, atol=1e-6)


def test_sdmgrad_where_products_vanish() -> None:
    zero = torch.zeros(3, 6).double()
    for batches in ([zero], [jacobian(0), zero, zero], [jacobian(0), jacobian(1), -jacobian(1)]):
        _, w = step_on(SDMGrad(3), *batches)
        assert w.isfinite().all()
        assert w.sum().item() == pytest.approx(1, abs=1e-6)


# --- both ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", ["plain", "weighted"])
@pytest.mark.parametrize("rescale", ["none", "tasks", "equal-norm"])
@pytest.mark.parametrize("batches", [1, 2, 3])
@pytest.mark.parametrize("build", BUILDS)
def test_a_network(build: Any, batches: int, rescale: Any, heads: Any) -> None:
    """The weights are spent on the first batch, and its heads treated as asked."""
    network = Network().double()
    strategy = build(TASKS, rescale=rescale, heads=heads)
    walks = [0]
    all_losses = []
    for i in range(batches):
        features, losses = losses_of(network, batch(i, dtype=torch.float64))
        all_losses.append(losses)
        if i == 0:
            assert features.grad_fn is not None
            features.grad_fn.register_hook(lambda *_: walks.__setitem__(0, walks[0] + 1))
    trunk = gradient_rows(all_losses[0], network.trunk.parameters())
    own = {
        task: gradient_rows({task: all_losses[0][task]}, head.parameters())[0]
        for task, head in network.heads.items()
    }
    walks[0] = 0
    strategy(all_losses[0], independent=all_losses[1:]).backward()
    w = strategy.weights.double()
    got = gradient_now(network.trunk.parameters())
    torch.testing.assert_close(got, w @ trunk, rtol=1e-5, atol=1e-7)
    for i, task in enumerate(TASKS):
        factor = w[i] if heads == "weighted" else 1.0
        got = gradient_now(network.heads[task].parameters())
        torch.testing.assert_close(got, factor * own[task], rtol=1e-5, atol=1e-7)
    if batches == 3 and rescale != "equal-norm":
        assert walks[0] <= 2  # none of the tasks' own
    if rescale == "tasks":
        assert w.sum().item() == pytest.approx(3, rel=1e-5)
    elif rescale == "none":
        assert w.sum().item() == pytest.approx(1, rel=1e-5)
    else:
        length = gradient_now(network.trunk.parameters()).norm().item()
        assert length == pytest.approx(trunk.mean(0).norm().item(), rel=1e-5)


@pytest.mark.parametrize("build", BUILDS)
def test_shared_as_an_iterator(build: Any) -> None:
    network, weights = Network(), []
    for shared in (None, network.trunk.parameters(), list(network.trunk.parameters())):
        strategy = build(TASKS)
        losses = [losses_of(network, batch(i))[1] for i in range(3)]
        strategy(losses[0], shared=shared, independent=losses[1:]).backward()
        weights.append(strategy.weights)
    torch.testing.assert_close(weights[0], weights[1])
    torch.testing.assert_close(weights[0], weights[2])


@pytest.mark.parametrize("build", BUILDS)
def test_what_is_refused(build: Any) -> None:
    network, strategy = Network(), build(TASKS)
    pairs = [losses_of(network, batch(i)) for i in range(4)]
    features, losses = pairs[0]
    others = [other for _, other in pairs[1:]]
    with pytest.raises(ValueError, match="has 3 further batches: give two, or one"):
        strategy(losses, independent=others)
    with pytest.raises(ValueError, match=r"features: give `shared=encoder.parameters\(\)`"):
        strategy(losses, shared=features, independent=others[:2])
    with pytest.raises(ValueError, match="give all of them the same tasks"):
        strategy(losses, independent=[{"a": others[0]["a"]}])
    infinite = {**others[0], "b": (others[0]["b"] * 0).sqrt()}
    with pytest.raises(ValueError, match="gradient of task 'b' is not finite"):
        strategy(losses, independent=[others[1], infinite])
    assert strategy.step == 0
    assert torch.equal(strategy.weights, build(TASKS).weights)
    strategy(losses, shared=features).backward()  # of one batch, features will do


@pytest.mark.parametrize("build", BUILDS)
def test_logarithms_of_all_batches(build: Any) -> None:
    """A wrapper passes the further batches on, changed as the first."""
    theta = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    values = torch.tensor([2.0, 0.5, 4.0]).double()
    batches = [
        [row @ theta + v for row, v in zip(jacobian(i), values, strict=True)] for i in range(3)
    ]
    strategy = LogLosses(build(3), epsilon=0)
    strategy(batches[0], independent=batches[1:])
    _, w = step_on(build(3), *(jacobian(i) / values[:, None] for i in range(3)))
    torch.testing.assert_close(strategy.weights.double() * values, w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("size", [0, 1, 4096, 10_000])
def test_products_of_any_scale(size: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, size, generator=generator) for n in (3, 2))
    got = exact_products(scale * a, scale * b)
    wanted = (scale * a).double() @ (scale * b).double().T
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12 * scale**2)
