from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mtlweight import COSMOS, PBI, OptionError, Strategy
from tests.contract.strategies import plane, same_bits, snapshot, solve

scalarization = pytest.importorskip("torchjd.scalarization")

J = torch.eye(3).double()
LOSSES = torch.tensor([2.0, 0.5, 1.0]).double()


def step(strategy: Strategy, values: Any) -> Tensor:
    return solve(strategy, J, values)[1]


def cases() -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [tuple(0.1 + torch.rand(3, 3, generator=generator).double()) for _ in range(6)]


@pytest.mark.parametrize("theta", [0.0, 0.5, 5.0])
def test_pbi_of_torchjd(theta: float) -> None:
    for values, preferences, ideals in cases():
        leaf = values.clone().requires_grad_()
        peer = scalarization.PBI(theta, preferences, ideals)
        total = peer(leaf)
        total.backward()
        strategy = PBI(3, preferences=preferences, theta=theta, ideals=ideals)
        assert strategy(plane(J, values)[1]).item() == pytest.approx(total.item(), rel=1e-5)
        torch.testing.assert_close(strategy.weights.double(), leaf.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("penalty", [0.0, 0.01, 1.0, 8.0])
def test_cosmos_of_torchjd(penalty: float) -> None:
    for values, preferences, _ in cases():
        leaf = values.clone().requires_grad_()
        preferences = preferences / preferences.sum()
        total = scalarization.COSMOS(penalty, preferences)(leaf)
        total.backward()
        strategy = COSMOS(3, preferences=7 * preferences, penalty=penalty)
        ours = strategy(plane(J, values)[1])
        assert ours.item() == pytest.approx(total.item(), rel=1e-5, abs=1e-6)
        torch.testing.assert_close(strategy.weights.double(), leaf.grad, rtol=1e-4, atol=1e-6)


def test_pbi_without_a_price_is_the_projection() -> None:
    strategy = PBI(3, preferences=[3.0, 0.1, 4.0], theta=0.0)
    p = torch.tensor([3.0, 0.1, 4.0]).double()
    p = p / p.norm()
    assert strategy(plane(J, LOSSES)[1]).item() == pytest.approx((p * LOSSES).sum().item())
    torch.testing.assert_close(strategy.weights.double(), p)


def test_cosmos_without_a_penalty_is_the_weighted_mean() -> None:
    strategy = COSMOS(3, preferences=[2.0, 1.0, 1.0], penalty=0.0)
    assert strategy(plane(J, LOSSES)[1]).item() == pytest.approx(1.375)
    torch.testing.assert_close(strategy.weights, torch.tensor([0.5, 0.25, 0.25]))


def test_pbi_off_its_direction_has_negative_weights_of_one_length() -> None:
    w = step(PBI(3), LOSSES)
    assert w[0] > 0
    assert w[1] < 0
    assert w.norm() == pytest.approx(26**0.5, rel=1e-5)
    assert w.sum() == pytest.approx(3**0.5, rel=1e-4)  # off an equal direction the rest cancels


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e18])
def test_pbi_on_its_direction(scale: float) -> None:
    preferences = torch.tensor([2.0, 1.0, 3.0]).double()
    w = step(PBI(3, preferences=preferences), scale * preferences)
    torch.testing.assert_close(w, preferences / preferences.norm(), rtol=1e-4, atol=1e-4)


def test_cosmos_may_have_negative_weights() -> None:
    w = step(COSMOS(3, penalty=8.0), LOSSES)
    assert w[0] > 1
    assert w[1] < 0


def test_cosmos_of_parallel_losses_sees_the_sum_alone() -> None:
    strategy = COSMOS(3, preferences=[2.0, 1.0, 1.0], penalty=8.0)
    w = step(strategy, [4.0, 2.0, 2.0])
    torch.testing.assert_close(w, torch.tensor([0.5, 0.25, 0.25]).double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", [PBI, COSMOS])
@given(
    st.lists(
        st.sampled_from([0.0, 1e-38, 1e-20, 1.0, 1.0000001, -3.0, 1e18]), min_size=3, max_size=3
    )
)
def test_always_finite(build: Any, losses: list[float]) -> None:
    theta = torch.zeros(3, requires_grad=True)
    strategy = build(3)
    values = [theta[i] + loss for i, loss in enumerate(losses)]
    total = strategy(values)
    assert total.isfinite()
    assert strategy.weights.isfinite().all()


@pytest.mark.parametrize("build", [PBI, COSMOS])
def test_preferences_are_told_step_by_step(build: Any) -> None:
    strategy = build(["a", "b", "c"], preferences={"b": 2.0, "a": 1.0, "c": 3.0})
    assert strategy.preferences.tolist() == [1, 2, 3]
    strategy.set_preferences(torch.tensor([3.0, 1.0, 1.0]))
    fresh = build(["a", "b", "c"], preferences=[3.0, 1.0, 1.0])
    for one in (strategy, fresh):
        step(one, LOSSES)
    assert same_bits(snapshot(strategy), snapshot(fresh))
    other = build(["a", "b", "c"])
    other.load_state_dict(strategy.state_dict())
    assert same_bits(snapshot(other), snapshot(strategy))
    for bad in ([1.0, 0.0, 1.0], [1.0, -1.0, 1.0], [1.0, 1.0], {"a": 1.0}, {"x": 1.0}):
        with pytest.raises(OptionError):
            strategy.set_preferences(bad)
        with pytest.raises(OptionError):
            build(["a", "b", "c"], preferences=bad)
    assert same_bits(snapshot(other), snapshot(strategy))


@pytest.mark.parametrize("build", [PBI, COSMOS])
def test_the_tasks_present_go_by_their_own_preferences(build: Any) -> None:
    strategy, pair = build(3, preferences=[1.0, 5.0, 2.0]), build(2, preferences=[1.0, 2.0])
    theta = torch.ones((), requires_grad=True)
    total = strategy({"0": theta * 4.0, "2": theta * 1.0})
    assert total.item() == pytest.approx(pair([theta * 4.0, theta * 1.0]).item())
    torch.testing.assert_close(strategy.weights[[0, 2]], pair.weights)
