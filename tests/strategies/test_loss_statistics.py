from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mtlweight import LBTW, SLAW, CoV, OptionError, Strategy
from tests.contract.strategies import plane, solve


def weights_on(strategy: Strategy, *steps: Any) -> Tensor:
    """Returns the weights in the last of some steps."""
    for losses in steps:
        values = torch.as_tensor(losses, dtype=torch.float64)
        _, w = solve(strategy, torch.eye(len(values)).double(), values)
    return w


def noise(steps: int, tasks: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.2 + torch.rand(steps, tasks, generator=generator, dtype=torch.float64)


def partly(strategy: Strategy, losses: dict[str, float]) -> None:
    theta = torch.ones(len(losses), requires_grad=True)
    strategy({task: theta[i] * loss for i, (task, loss) in enumerate(losses.items())})


# --- LBTW ----------------------------------------------------------------------------------------


def test_lbtw() -> None:
    strategy = LBTW(3)
    assert weights_on(strategy, (4.0, 1.0, 1.0)).tolist() == [1, 1, 1]
    wanted = [0.5**0.5, 0.5**0.5, 1.0]
    theta, losses = plane(torch.eye(3).double(), [2.0, 0.5, 1.0])
    total = strategy(losses)
    total.backward()
    assert strategy.weights.tolist() == pytest.approx(wanted)
    assert theta.grad is not None
    assert theta.grad.tolist() == pytest.approx(wanted)  # the weights are constants in it
    assert total.item() == pytest.approx(2.5 * 0.5**0.5 + 1)
    # The first losses count, not the last.
    assert weights_on(strategy, (1.0, 1.0, 4.0)).tolist() == pytest.approx([0.5, 1.0, 2.0])


def test_lbtw_without_alpha_is_the_sum() -> None:
    strategy = LBTW(3, alpha=0.0)
    for losses in ((4.0, 1.0, 1.0), (2.0, 0.0, 9.0), (0.0, 0.0, 0.0)):
        assert weights_on(strategy, losses).tolist() == [1, 1, 1]


def test_lbtw_begins_anew_in_each_epoch() -> None:
    strategy = LBTW(2, alpha=1.0)
    weights_on(strategy, (4.0, 1.0), (1.0, 1.0))
    strategy.end_epoch()
    assert strategy.weights.tolist() == pytest.approx([0.625, 1.0])  # the mean of (1, 1), (1/4, 1)
    assert weights_on(strategy, (1.0, 1.0)).tolist() == [1, 1]
    assert weights_on(strategy, (0.5, 1.0)).tolist() == pytest.approx([0.5, 1.0])


def test_lbtw_edges() -> None:
    strategy = LBTW(2)
    assert weights_on(strategy, (0.0, 1.0)).tolist() == [1, 1]
    assert weights_on(strategy, (5.0, 1.0)).tolist() == [1, 1]  # the first that is not zero
    w = weights_on(strategy, (5e9, 1e-30))
    assert w.tolist() == pytest.approx([10**0.5, 0.0], rel=1e-6, abs=1e-12)
    with pytest.raises(OptionError, match="alpha"):
        LBTW(2, alpha=-0.5)


def test_lbtw_remembers_the_absent() -> None:
    strategy = LBTW(["a", "b"], alpha=1.0)
    partly(strategy, {"a": 4.0, "b": 2.0})
    partly(strategy, {"b": 1.0})
    assert strategy.named_weights == pytest.approx({"a": 0.0, "b": 0.5})
    partly(strategy, {"a": 1.0, "b": 1.0})
    assert strategy.named_weights == pytest.approx({"a": 0.25, "b": 0.5})


# --- CoV -----------------------------------------------------------------------------------------


def test_cov() -> None:
    strategy = CoV(2)
    for losses, wanted in [
        ((1.0, 1.0), (0.5, 0.5)),
        ((0.9, 0.5), (0.5, 0.5)),
        ((0.8, 0.9), (0.136364, 0.863636)),
        ((0.7, 0.4), (0.179076, 0.820924)),
    ]:
        assert weights_on(strategy, losses).tolist() == pytest.approx(wanted, abs=1.5e-6)


def test_constant_losses_are_equal_weights() -> None:
    strategy = CoV(3)
    for _ in range(20):
        w = weights_on(strategy, (0.3, 7.0, 1e4))
        assert w.tolist() == pytest.approx([1 / 3] * 3, rel=1e-4)
    spreads = (strategy.ratio_variances + 1e-8).sqrt()
    assert spreads.tolist() == pytest.approx([1e-4] * 3, rel=1e-4)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_the_statistics_of_cov(decay: float | None) -> None:
    """As by sums of squares, in double precision."""
    strategy = CoV(3, decay=decay)
    mean_loss = mean = squares = torch.zeros(3).double()
    spread = torch.zeros(3).double()
    for k, losses in enumerate(noise(50)):
        ratio = losses / (losses if k == 0 else mean_loss)
        wanted = spread / mean
        wanted = torch.full((3,), 1 / 3).double() if k < 2 else wanted / wanted.sum()
        past = 0.0 if k == 0 else 1 - 1 / (k + 1) if decay is None else decay
        new_mean = past * mean + (1 - past) * ratio
        squares = squares + (ratio - mean) * (ratio - new_mean)
        mean, mean_loss = new_mean, past * mean_loss + (1 - past) * losses
        spread = (squares / (k + 1) + 1e-8).sqrt()
        torch.testing.assert_close(weights_on(strategy, losses), wanted, rtol=1e-4, atol=1e-6)


def test_the_scale_of_a_loss_leaves_the_weights_of_cov_alone() -> None:
    strategy, scaled = CoV(3), CoV(3)
    for losses in noise(20):
        w = weights_on(strategy, losses)
        other = weights_on(scaled, losses * torch.tensor([1e-6, 1.0, 1e7]))
        torch.testing.assert_close(other, w, rtol=1e-4, atol=1e-6)


def test_cov_with_zeros_and_spikes_stays_finite() -> None:
    strategy = CoV(2)
    for losses in ((0.0, 1.0), (1e9, 1.0), (0.0, 1e-30), (1.0, 1e12), (1.0, 1.0)):
        w = weights_on(strategy, losses)
        assert w.sum().item() == pytest.approx(1)
        assert (w > 0).all()
    assert strategy.ratio_variances.isfinite().all()


@pytest.mark.parametrize("decay", [None, 0.0, 0.5])
def test_cov_with_a_loss_that_stays_zero(decay: float | None) -> None:
    """With decay, the mean of its ratios falls below what a number can be divided by."""
    strategy = CoV(2, decay=decay)
    for step in range(200):
        w = weights_on(strategy, (1.0 if step < 2 else 0.0, 1 + 0.1 * (step % 3)))
        assert w.sum().item() == pytest.approx(1)
        assert (w > 0).all()


def test_cov_of_tasks_that_come_and_go() -> None:
    strategy, alone = CoV(["a", "b", "c"]), CoV(["a", "b"])
    for a, b, _ in noise(10).tolist():
        partly(strategy, {"a": a, "b": b})
        partly(alone, {"a": a, "b": b})
        assert strategy.named_weights["a"] == pytest.approx(alone.named_weights["a"])
    for step in range(3):
        partly(strategy, {"a": 0.5, "b": 0.6, "c": 1.0 + step})
        equal = strategy.weights.tolist() == pytest.approx([1 / 3] * 3)
        assert equal == (step < 2), "a task is weighed once it was seen twice"


# --- SLAW ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99])
def test_slaw(beta: float) -> None:
    """As by the means of the losses and of their squares, in double precision."""
    strategy = SLAW(3, beta=beta, rescale="tasks")
    history = noise(60) * torch.tensor([1.0, 10.0, 1e-3])
    a, b = history[0] ** 2, history[0]
    for k, losses in enumerate(history):
        if k:
            a = beta * a + (1 - beta) * losses**2
            b = beta * b + (1 - beta) * losses
        spread = (a - b**2).clamp_min(0).sqrt()
        wanted = 3 * (1 / spread) / (1 / spread).sum() if k else torch.ones(3).double()
        torch.testing.assert_close(weights_on(strategy, losses), wanted, rtol=1e-4, atol=1e-7)


def test_a_loss_times_c_has_its_weight_divided_by_c() -> None:
    strategy, scaled = SLAW(3), SLAW(3)
    c = torch.tensor([1.0, 1e4, 1e-5]).double()
    for k, losses in enumerate(noise(10)):
        w, other = weights_on(strategy, losses), weights_on(scaled, c * losses)
        if k:
            torch.testing.assert_close(other * c / (other * c).sum(), w, rtol=1e-4, atol=1e-7)


def test_a_small_spread_on_a_large_mean() -> None:
    """The difference of two means of squares would be rounding alone in single precision."""
    generator = torch.Generator().manual_seed(0)
    strategy = SLAW(2, beta=0.95)
    for _ in range(200):
        x = torch.randn(2, generator=generator, dtype=torch.float64)
        w = weights_on(strategy, torch.tensor([1000.0, 1.0]) + torch.tensor([0.1, 0.1]) * x)
    assert w.tolist() == pytest.approx([0.5, 0.5], abs=0.15)


def test_tasks_without_spread() -> None:
    strategy = SLAW(3, beta=0.5)
    assert weights_on(strategy, (1.0, 2.0, 3.0)).tolist() == pytest.approx([1 / 3] * 3)
    assert weights_on(strategy, (1.0, 2.0, 3.0)).tolist() == pytest.approx([1 / 3] * 3)
    w = weights_on(strategy, (2.0, 2.0, 6.0))  # spreads 1/2, 0, 3/2: inverses 3, (3 + 1) / 2, 1
    assert w.tolist() == pytest.approx([3 / 6, 2 / 6, 1 / 6])
    for losses in ((0.0, 0.0, 0.0), (1e15, 0.0, 1e-25)):
        w = weights_on(strategy, losses)
        assert w.isfinite().all()
        assert w.sum().item() == pytest.approx(1)


def test_spikes_do_not_overflow_in_squares() -> None:
    strategy = SLAW(2)
    weights_on(strategy, (1.0, 1.0), (1e30, 1.1))
    assert strategy.spreads.isfinite().all()
    assert strategy.spreads[0].item() == pytest.approx(1e30 * (0.99 * 0.01) ** 0.5, rel=1e-5)
    assert strategy.weights[1].item() == pytest.approx(1.0)
    assert strategy.weights[0] > 0


@pytest.mark.parametrize("build", [CoV, SLAW])
def test_one_task(build: type) -> None:
    strategy = build(1)
    for loss in (1.0, 0.5, 0.5, 0.0):
        assert weights_on(strategy, (loss,)).tolist() == pytest.approx([1.0])
