from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlweight import GLS, Equal, LogLosses, ScaleInvariant
from tests.contract.strategies import plane, solve

J = torch.tensor([[3, 1, 0, 0], [-1, 2, 1, 0], [0, -1, 2, 2]], dtype=torch.float64)
LOSSES = torch.tensor([2.0, 0.5, 1.0]).double()


def test_the_sum_of_logarithms() -> None:
    theta, losses = plane(J, LOSSES)
    strategy = ScaleInvariant(3)
    total = strategy(losses)
    total.backward()
    assert total.item() == pytest.approx(0.0, abs=1e-12)  # log 2 + log 1/2 + log 1
    assert strategy.weights.tolist() == pytest.approx([0.5, 2.0, 1.0])
    assert theta.grad is not None
    assert theta.grad.tolist() == pytest.approx([-0.5, 3.5, 4.0, 2.0])


@settings(max_examples=25)
@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3))
def test_a_loss_times_a_constant_has_the_same_gradient(exponents: list[float]) -> None:
    c = 10.0 ** torch.tensor(exponents).double()
    d, _ = solve(ScaleInvariant(3), J, LOSSES)
    scaled, w = solve(ScaleInvariant(3), c[:, None] * J, c * LOSSES)
    torch.testing.assert_close(scaled, d, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(w, 1 / (c * LOSSES), rtol=1e-6, atol=0)


def test_it_is_the_logarithm_of_gls() -> None:
    geometric, _ = solve(GLS(3), J, 5 * LOSSES)  # whose mean is 5
    d, _ = solve(ScaleInvariant(3), J, 5 * LOSSES)
    torch.testing.assert_close(geometric, d * 5 / 3, rtol=1e-6, atol=1e-9)


def test_it_is_the_sum_fed_with_logarithms() -> None:
    d, w = solve(LogLosses(Equal(3, rescale="tasks"), epsilon=0), J, LOSSES)
    other, weights = solve(ScaleInvariant(3), J, LOSSES)
    torch.testing.assert_close(other, d, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(weights, w, rtol=1e-6, atol=0)


@pytest.mark.parametrize("build", [GLS, ScaleInvariant])
def test_a_loss_near_zero_has_no_say(build: type) -> None:
    for tiny in (0.0, 1e-40, 5e-9):
        d, w = solve(build(3), J, torch.tensor([tiny, 1.0, 0.5]).double())
        assert w[0] == 0
        assert (w[1:] > 0).all()
        torch.testing.assert_close(d, w @ J)
    d, w = solve(build(3), J, torch.zeros(3).double())
    assert not d.any()
    assert not w.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiny_losses_have_finite_weights(dtype: torch.dtype) -> None:
    """Below 1e-30 their inverses are no numbers that a mean over an epoch can hold."""
    for size in (1e-20, 1e-29, 1e-35, 1e-300):
        strategy = ScaleInvariant(2)
        for _ in range(10):
            _, w = solve(strategy, torch.eye(2, dtype=dtype), torch.tensor([size, size]).to(dtype))
            assert w.isfinite().all()
        strategy.end_epoch()
        assert strategy.weights.isfinite().all()
        assert (strategy.weights > 0).all() == (size > 1e-30)


def test_one_task_and_a_part_of_the_tasks() -> None:
    _, w = solve(ScaleInvariant(1), J[:1], [4.0])
    assert w.tolist() == pytest.approx([0.25])
    _, losses = plane(J, LOSSES)
    strategy = ScaleInvariant(["a", "b", "c"])
    assert strategy({"c": losses[2], "a": losses[0]}).item() == pytest.approx(0.693147, rel=1e-5)
    assert strategy.named_weights == pytest.approx({"a": 0.5, "b": 0.0, "c": 1.0})


def test_a_negative_loss_is_refused() -> None:
    strategy = ScaleInvariant(["a", "b", "c"])
    with pytest.raises(ValueError, match=r"'b' is -0\.5"):
        solve(strategy, J, [2.0, -0.5, 1.0])
    assert strategy.step == 0
