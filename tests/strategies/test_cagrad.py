from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mtlweight import CAGrad, Equal, OptionError
from tests.contract.strategies import solve

J3 = torch.tensor([[3, 1, 0, 0], [-1, 2, 1, 0], [0, -1, 2, 2]], dtype=torch.float64)


def random_jacobian(seed: int, tasks: int = 3, numbers: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, numbers, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("c", "wanted"),
    [(0.5, (0.433179, 0.621518, 0.414345)), (0.4, (0.399707, 0.573493, 0.382328))],
)
def test_vectors(c: float, wanted: tuple[float, ...]) -> None:
    divisors: dict[Any, float] = {"none": 1, "square": 1 + c**2, "linear": 1 + c}
    for division, divisor in divisors.items():
        d, w = solve(CAGrad(3, c=c, division=division), J3)
        assert (w * divisor).tolist() == pytest.approx(wanted, abs=1.5e-6)
        assert ((divisor * d - J3.mean(0)).norm() / J3.mean(0).norm()) == pytest.approx(c)
    _, w = solve(CAGrad(3, c=0.5), J3)
    assert (1.25 * w).tolist() == pytest.approx((0.433179, 0.621518, 0.414345), abs=1.5e-6)
    inner = 1.25 * w - 1 / 3
    assert (inner / inner.sum()).tolist() == pytest.approx((0.212872, 0.614411, 0.172718), abs=2e-6)


def test_defaults() -> None:
    _, w = solve(CAGrad(3), J3)
    wanted = torch.tensor((0.399707, 0.573493, 0.382328)) / 1.16
    assert w.tolist() == pytest.approx(wanted.tolist(), abs=1.5e-6)


def test_without_a_ball_it_is_the_mean() -> None:
    for seed in range(3):
        jacobian = random_jacobian(seed, 5)
        d, _ = solve(CAGrad(5, c=0), jacobian)
        mean, _ = solve(Equal(5), jacobian)
        torch.testing.assert_close(d, mean)


@pytest.mark.parametrize("c", [0.2, 0.4, 2.0])
def test_identical_gradients(c: float) -> None:
    g = random_jacobian(1, 1)
    d, w = solve(CAGrad(4, c=c, division="none"), g.repeat(4, 1))
    torch.testing.assert_close(d, (1 + c) * g[0])
    assert w.sum() == pytest.approx(1 + c)
    d, _ = solve(CAGrad(1, c=c, division="linear"), g)
    torch.testing.assert_close(d, g[0])


@pytest.mark.parametrize("scale", [1e-20, 1e-9, 1e-4, 1e9])
def test_short_gradients_are_worth_as_much_as_long_ones(scale: float) -> None:
    """Peers with absolute constants return no update at all once all gradients are below .01."""
    d, w = solve(CAGrad(3), J3)
    scaled, weights = solve(CAGrad(3), scale * J3)
    torch.testing.assert_close(scaled / scale, d)
    torch.testing.assert_close(weights, w)
    theta = torch.zeros(4, requires_grad=True)
    CAGrad(3)([row @ theta + 1 for row in (scale * J3).float()]).backward()
    assert theta.grad is not None
    torch.testing.assert_close(theta.grad.double() / scale, d, rtol=1e-5, atol=1e-6)


def test_where_the_gradients_cancel() -> None:
    """Opposed gradients: from one of the same length there is nothing to gain, d is the mean."""
    g = random_jacobian(2, 1)[0]
    d, w = solve(CAGrad(2), torch.stack([g, -g]))
    torch.testing.assert_close(d, torch.zeros(6).double(), rtol=0, atol=1e-9)
    assert w.isfinite().all()
    for c in (1.0, 3.0):  # a ball that reaches the origin: no step hurts none of the two
        d, _ = solve(CAGrad(2, c=c), torch.stack([g, -3 * g]))
        torch.testing.assert_close(d, torch.zeros(6).double(), rtol=0, atol=1e-7)


def test_a_task_without_gradient() -> None:
    jacobian = J3.clone()
    jacobian[1] = 0
    d, w = solve(CAGrad(3, division="none"), jacobian)
    assert w[1] == pytest.approx(1 / 3)
    assert (jacobian[[0, 2]] @ d > 0).all()
    d, w = solve(CAGrad(3), torch.zeros(3, 4).double())
    assert d.tolist() == [0] * 4
    assert w.tolist() == pytest.approx([1 / 3] * 3)


@given(st.integers(0, 10**6), st.integers(2, 7), st.integers(1, 9), st.floats(1.0, 5.0))
def test_no_task_is_hurt_in_a_ball_that_holds_the_origin(
    seed: int, tasks: int, numbers: int, c: float
) -> None:
    jacobian = random_jacobian(seed, tasks, numbers)
    d, w = solve(CAGrad(tasks, c=c), jacobian)
    size = jacobian.norm(dim=1) * (w @ jacobian.norm(dim=1))
    assert (jacobian @ d >= -1e-6 * size).all()


@given(st.integers(0, 10**6), st.integers(2, 7), st.floats(0.0, 5.0))
def test_the_worst_off_gains_on_the_mean(seed: int, tasks: int, c: float) -> None:
    jacobian = random_jacobian(seed, tasks, 8)
    d, w = solve(CAGrad(tasks, c=c, division="none"), jacobian)
    mean = jacobian.mean(0)
    assert (jacobian @ d).min() >= (jacobian @ mean).min() - 1e-9
    assert (w >= 1 / tasks - 1e-6).all() or (d - mean).norm() < c * mean.norm()


@pytest.mark.parametrize(
    "options", [{"c": -0.1}, {"c": float("inf")}, {"division": "cube"}, {"rescale": 1}]
)
def test_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        CAGrad(2, **options)
