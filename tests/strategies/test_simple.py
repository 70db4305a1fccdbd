from __future__ import annotations

import pytest
import torch

from mtlweight import GLS, Equal, Fixed, LogLosses, PCGrad
from tests.contract.strategies import plane, solve

J = torch.eye(3).double()


def test_equal_is_the_mean_of_those_present() -> None:
    _theta, losses = plane(J, [1.0, 2.0, 6.0])
    strategy = Equal(["a", "b", "c"])
    assert strategy(losses).item() == pytest.approx(3)
    assert strategy({"a": losses[0], "c": losses[2]}).item() == pytest.approx(3.5)
    assert strategy.named_weights == pytest.approx({"a": 0.5, "b": 0.0, "c": 0.5})


def test_fixed_weights_do_not_depend_on_who_is_there() -> None:
    _theta, losses = plane(J, [1.0, 2.0, 6.0])
    strategy = Fixed(["a", "b", "c"], {"c": 0.5, "a": 2.0, "b": 0.0})
    assert strategy.weights.tolist() == [2.0, 0.0, 0.5]
    assert strategy(losses).item() == pytest.approx(5)
    assert strategy({"c": losses[2]}).item() == pytest.approx(3)


def test_gls_scales_with_the_root() -> None:
    _, losses = plane(J, [1.0, 2.0, 6.0])
    base = GLS(3)(losses).item()
    _, losses = plane(J, [1.0, 2.0, 6.0 * 8])
    assert GLS(3)(losses).item() == pytest.approx(2 * base)


def test_gls_of_many_small_losses_does_not_underflow() -> None:
    n = 200
    strategy = GLS(n)
    d, w = solve(strategy, torch.eye(n), torch.full((n,), 1e-3))
    torch.testing.assert_close(w, torch.full((n,), 1 / n), rtol=1e-4, atol=0)
    torch.testing.assert_close(d, torch.full((n,), 1 / n), rtol=1e-4, atol=0)


def test_gls_with_a_zero_loss_leaves_its_task_out() -> None:
    _d, w = solve(GLS(3), J, [0.0, 1.0, 1.0])
    assert w[0] == 0
    assert w.isfinite().all()


def test_logarithms_around_any_strategy() -> None:
    """Feeding logarithms is feeding logarithms: the same as a user who takes them."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    theta, losses = plane(rows, [0.3, 2.0, 6.0])
    inner = PCGrad(3)
    total = inner([(loss + 1e-8).log() for loss in losses])
    total.backward()
    wanted = theta.grad
    theta, losses = plane(rows, [0.3, 2.0, 6.0])
    strategy = LogLosses(PCGrad(3))
    other = strategy(losses)
    other.backward()
    torch.testing.assert_close(theta.grad, wanted)
    assert other.item() == pytest.approx(total.item())
    values = torch.tensor([0.3, 2.0, 6.0])
    torch.testing.assert_close(strategy.weights, inner.weights / values)
