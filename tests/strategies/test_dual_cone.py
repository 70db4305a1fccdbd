from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mtlweight import DualProj, Equal, OptionError, PCGrad, UPGrad
from tests.contract.strategies import plane, solve

J3 = torch.tensor([[3, 1, 0, 0], [-1, 2, 1, 0], [0, -1, 2, 2]], dtype=torch.float64)
BOTH = pytest.mark.parametrize("strategy", [UPGrad, DualProj])


def random_jacobian(seed: int, tasks: int = 3, numbers: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, numbers, generator=generator, dtype=torch.float64)


def test_vectors() -> None:
    d, w = solve(UPGrad(3), J3)
    assert w.tolist() == pytest.approx((0.400940, 0.394539, 0.374116), abs=1.5e-6)
    assert (J3 @ d >= 0).all()
    _, w = solve(DualProj(3), J3)  # the mean hurts none
    assert w.tolist() == pytest.approx([1 / 3] * 3)


def test_each_gradient_is_projected() -> None:
    rows = [(1, 1 / 6, 1 / 9), (0.101124, 1, 0.011236), (0.101695, 0.016949, 1)]
    for i, wanted in enumerate(rows):
        unit = [float(j == i) for j in range(3)]
        for strategy in (UPGrad(3, preference=unit), DualProj(3, preference=unit)):
            _, w = solve(strategy, J3)
            assert w.tolist() == pytest.approx(wanted, abs=1.5e-6)


def test_two_tasks() -> None:
    """Half of PCGrad; and the mean without its part along the gradient that it hurts."""
    for seed in range(10):
        jacobian = random_jacobian(seed, 2)
        d, _ = solve(UPGrad(2), jacobian)
        twice, _ = solve(PCGrad(2), jacobian)
        torch.testing.assert_close(d, twice / 2)
        d, _ = solve(DualProj(2), jacobian)
        mean = jacobian.mean(0)
        for g in jacobian:
            if mean @ g < 0:
                mean = mean - (mean @ g) / (g @ g) * g
        torch.testing.assert_close(d, mean)


@BOTH
def test_without_conflict_it_is_the_mean(strategy: Any) -> None:
    for jacobian in (torch.eye(4), torch.rand(5, 7), torch.ones(3, 2), 3 * torch.rand(1, 4)):
        d, w = solve(strategy(len(jacobian)), jacobian.double())
        mean, equal = solve(Equal(len(jacobian)), jacobian.double())
        torch.testing.assert_close(d, mean)
        torch.testing.assert_close(w, equal)


def test_a_direction_that_hurts_none_stays() -> None:
    jacobian = random_jacobian(3, 4, 6)
    _, w = solve(DualProj(4), jacobian)
    d, again = solve(DualProj(4, preference=w), jacobian)
    torch.testing.assert_close(again, w, rtol=1e-5, atol=1e-6)
    assert (jacobian @ d >= -1e-5).all()


@BOTH
@pytest.mark.parametrize("scale", [1e-20, 1e-9, 1e-3, 1e9])
def test_short_gradients_are_projected_too(strategy: Any, scale: float) -> None:
    """Peers with absolute constants return the mean once all gradients are below .01."""
    jacobian = torch.tensor([[1.0, 0.0, 1.0], [-9.0, 1.0, 0.0], [0.2, -2.0, 1.0]]).double()
    d, w = solve(strategy(3), jacobian)
    scaled, weights = solve(strategy(3), scale * jacobian)
    torch.testing.assert_close(scaled / scale, d)
    torch.testing.assert_close(weights, w)
    assert (d - jacobian.mean(0)).norm() > 0.1
    theta = torch.zeros(3, requires_grad=True)
    strategy(3)([row @ theta + 1 for row in (scale * jacobian).float()]).backward()
    assert theta.grad is not None
    torch.testing.assert_close(theta.grad.double() / scale, d, rtol=1e-5, atol=1e-6)


@BOTH
@given(st.integers(0, 10**6), st.integers(2, 8), st.integers(1, 10), st.integers(0, 4))
def test_no_task_is_hurt(strategy: Any, seed: int, tasks: int, numbers: int, decades: int) -> None:
    jacobian = random_jacobian(seed, tasks, numbers)
    jacobian *= 10.0 ** torch.randint(
        -decades, decades + 1, (tasks, 1), generator=torch.Generator().manual_seed(seed)
    )
    d, w = solve(strategy(tasks), jacobian)
    norms = jacobian.norm(dim=1)
    assert (jacobian @ d >= -1e-9 * norms * (w @ norms)).all()
    assert (w >= 1 / tasks - 1e-6).all()


@BOTH
def test_opposed_gradients_cancel(strategy: Any) -> None:
    g = random_jacobian(5, 1)[0]
    for factor in (1.0, 0.01, 1e3):
        d, w = solve(strategy(2), torch.stack([g, -factor * g]))
        torch.testing.assert_close(d, torch.zeros(6).double(), rtol=0, atol=1e-9 * (1 + factor))
        assert w.isfinite().all()


@BOTH
def test_a_task_without_gradient(strategy: Any) -> None:
    jacobian = J3.clone()
    jacobian[1] = 0
    d, w = solve(strategy(3), jacobian)
    alone, others = solve(strategy(2, preference=[1 / 3, 1 / 3]), J3[[0, 2]])
    torch.testing.assert_close(d, alone)
    assert w.tolist() == pytest.approx([others[0].item(), 1 / 3, others[1].item()])
    d, w = solve(strategy(3), torch.zeros(3, 4).double())
    assert d.tolist() == [0] * 4
    assert w.tolist() == pytest.approx([1 / 3] * 3)


@BOTH
def test_preference(strategy: Any) -> None:
    """Taken as it is, by name or in order; of the tasks present."""
    preference = {"a": 0.5, "b": 0.0, "c": 2.0}
    named = strategy(("a", "b", "c"), preference=preference)
    listed = strategy(3, preference=[0.5, 0.0, 2.0])
    d, w = solve(named, J3)
    same, _ = solve(listed, J3)
    torch.testing.assert_close(d, same)
    assert (w >= torch.tensor([0.5, 0.0, 2.0]).double()).all()
    _, losses = plane(J3)
    named({"c": losses[2]})
    assert named.weights.tolist() == [0, 0, 2]
    with_two = strategy(("a", "b", "c"))
    solve(with_two, J3)
    _, losses = plane(J3)
    with_two({"b": losses[1], "c": losses[2]})
    assert with_two.weights[0] == 0
    assert (with_two.weights[1:] >= 0.5).all()


@BOTH
@pytest.mark.parametrize(
    ("preference", "message"),
    [
        ([1.0, -1.0], "negative"),
        ([0.0, 0.0], "zero"),
        ([1.0], "preference"),
        ({"0": 1.0}, "'1'"),
        ([1.0, float("nan")], "nan"),
    ],
)
def test_refused(strategy: Any, preference: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        strategy(2, preference=preference)
