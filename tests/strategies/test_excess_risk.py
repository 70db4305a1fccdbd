from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mtlweight import ExcessMTL
from tests.contract.strategies import plane, solve
from tests.contract.test_vectors import J3

TASKS = ("a", "b", "c")


def jacobian(step: int, numbers: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(3, numbers, generator=generator, dtype=torch.float64)


class SlowExcess:
    """The rule, entry by entry, in plain arithmetic."""

    def __init__(self, step_size: float, warmup: int) -> None:
        self.step_size, self.warmup = step_size, warmup
        self.squares = [[0.0] * 6 for _ in range(3)]
        self.bases: list[list[float]] = [[], [], []]
        self.w = [1 / 3] * 3

    def step(self, rows: Tensor, present: list[int]) -> list[float]:
        total = sum(self.w[i] for i in present)
        for i in present:
            risk = 0.0
            for p, g in enumerate(rows[i].tolist()):
                self.squares[i][p] += g * g
                risk += g * g / math.sqrt(self.squares[i][p])
            if len(self.bases[i]) < self.warmup:
                self.bases[i].append(risk)
            else:
                base = sum(self.bases[i]) / self.warmup
                self.w[i] *= math.exp(self.step_size * min(risk / base, 10))
        scale = total / sum(self.w[i] for i in present)
        for i in present:
            self.w[i] *= scale
        return [self.w[i] / total if i in present else 0.0 for i in range(3)]


@pytest.mark.parametrize(("step_size", "warmup"), [(0.01, 1), (1.0, 1), (0.5, 3)])
def test_it_is_its_rule(step_size: float, warmup: int) -> None:
    strategy, slow = ExcessMTL(TASKS, step_size=step_size, warmup=warmup), None
    slow = SlowExcess(step_size, warmup)
    for step in range(12):
        present = [[0, 1, 2], [0, 2], [1], [0, 1, 2]][step % 4]
        rows = jacobian(step)
        theta = torch.zeros(6, dtype=torch.float64, requires_grad=True)
        strategy({TASKS[i]: rows[i] @ theta + 1 for i in present}, shared=[theta]).backward()
        wanted = torch.tensor(slow.step(rows, present)).double()
        torch.testing.assert_close(strategy.weights.double(), wanted, rtol=2e-5, atol=1e-7)
        assert theta.grad is not None
        torch.testing.assert_close(theta.grad, wanted @ rows, rtol=2e-5, atol=1e-5)


def test_canonical_risks() -> None:
    strategy = ExcessMTL(3)
    solve(strategy, J3)
    assert strategy.base_sums.tolist() == pytest.approx([4, 4, 5])
    before = strategy.log_shares
    _, w = solve(strategy, J3)
    risks = torch.tensor([4.0, 4.0, 5.0]) * 0.707107
    again = ExcessMTL(3)
    solve(again, J3)
    assert again._risks(J3).tolist() == pytest.approx(risks.tolist(), rel=1e-5)
    assert w.tolist() == pytest.approx([1 / 3] * 3)
    torch.testing.assert_close(strategy.log_shares, before)


def test_identical_gradients_have_equal_weights_for_ever() -> None:
    strategy = ExcessMTL(3, step_size=1.0)
    for step in range(30):
        _, w = solve(strategy, jacobian(step)[:1].expand(3, 6))
        assert w.tolist() == pytest.approx([1 / 3] * 3, rel=1e-5)


@pytest.mark.parametrize("step_size", [0.01, 1.0, 100.0])
def test_ten_thousand_parameters(step_size: float) -> None:
    """The raw risk is as large as their number: its exponential is none that floats can hold."""
    strategy = ExcessMTL(3, step_size=step_size)
    scales = torch.tensor([1.0, 2.0, 3.0])[:, None]
    for step in range(5):
        _, w = solve(strategy, (scales * jacobian(step, 10_000)).float())
        assert w.isfinite().all()
        assert w.sum().item() == pytest.approx(1, rel=1e-6)
        if step == 0:
            assert w.tolist() == pytest.approx([1 / 3] * 3)


def test_who_is_farther_from_its_start_has_more_weight() -> None:
    strategy = ExcessMTL(3, step_size=0.1)
    rows = jacobian(0)
    for _ in range(20):
        _, w = solve(strategy, rows)
        rows = rows * torch.tensor([1.0, 0.8, 0.5]).double()[:, None]
    assert w[0] > w[1] > w[2]


def test_one_spike_does_not_decide_for_good() -> None:
    strategy = ExcessMTL(3)
    solve(strategy, jacobian(0))
    _, w = solve(strategy, jacobian(1) * torch.tensor([1.0, 1e6, 1.0]).double()[:, None])
    assert w.max() < 0.4
    assert w.argmax() == 1


def test_steps_without_a_gradient_are_no_first_steps() -> None:
    strategy, twin = ExcessMTL(3), ExcessMTL(3)
    rows = jacobian(0)
    for step in range(4):
        solve(strategy, torch.stack([rows[0], rows[1] * (step > 1), rows[2]]))
    solve(twin, rows)
    assert strategy.base_counts.tolist() == [1, 1, 1]
    assert strategy.base_sums.tolist() == pytest.approx(twin.base_sums.tolist())
    _, w = solve(strategy, 0 * rows)
    assert w.isfinite().all()


@given(st.lists(st.integers(-28, 28), min_size=3, max_size=3))
def test_the_scales_of_the_losses_do_not_change_the_weights(exponents: list[int]) -> None:
    """Also where the squares of the gradients leave the range of float32."""
    scales = torch.tensor([10.0**e for e in exponents])[:, None]
    strategy, twin = ExcessMTL(3, step_size=0.5), ExcessMTL(3, step_size=0.5)
    for step in range(3):
        theta, losses = plane(jacobian(step).float())
        strategy(losses)
        theta, losses = plane(scales * jacobian(step).float())
        twin(losses)
        assert theta.dtype == torch.float32
    torch.testing.assert_close(twin.weights, strategy.weights, rtol=1e-4, atol=1e-5)


def test_features_have_no_past() -> None:
    strategy = ExcessMTL(3)
    for items in (4, 6):
        leaf = torch.zeros(items, 2, dtype=torch.float64, requires_grad=True)
        features = leaf * 1.0
        losses = [(1.0 + i) * (features + 1).square().mean() for i in range(3)]
        strategy(losses, shared=features).backward()
    assert strategy.roots.shape == (3, 0)
    assert strategy.weights.tolist() == pytest.approx([1 / 3] * 3)


def test_many_columns_in_pieces() -> None:
    numbers = 100_003  # more than one piece
    strategy = ExcessMTL(3)
    rows = jacobian(0, numbers)
    solve(strategy, rows)
    solve(strategy, 2 * rows)
    torch.testing.assert_close(strategy.roots, 5**0.5 * rows.abs())
    wanted = (rows.abs().sum(1)).float()
    torch.testing.assert_close(strategy.base_sums, wanted)


def test_what_is_shared_must_not_shrink() -> None:
    strategy = ExcessMTL(3)
    solve(strategy, jacobian(0))
    with pytest.raises(ValueError, match="5 numbers in this step, and had 6"):
        solve(strategy, jacobian(0)[:, :5])
