from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlweight import IGBv1, OptionError, ScaleInvariant
from tests.contract.strategies import plane, solve

J = torch.tensor([[3, 1, 0, 0], [-1, 2, 1, 0], [0, -1, 2, 2]], dtype=torch.float64)
BASE = (4.0, 1.0, 1.0)
LOSSES = torch.tensor([2.0, 0.5, 1.0]).double()
WANTED = (0.822206, 0.822206, 1.355588)


def epoch(strategy: IGBv1, *steps: Any) -> None:
    for losses in steps:
        solve(strategy, J, torch.as_tensor(losses).double())
    strategy.end_epoch()


def log_weights(strategy: IGBv1, losses: Tensor) -> Tensor:
    """Returns the weights of the logarithms."""
    _, w = solve(strategy, J, losses)
    return w * losses


def test_the_weights_of_the_paper() -> None:
    strategy = IGBv1(3)
    epoch(strategy, (9.0, 9.0, 9.0))
    epoch(strategy, (6.0, 0.5, 1.0), (2.0, 1.5, 1.0))  # the mean of the second epoch is the base
    torch.testing.assert_close(strategy.bases, torch.tensor(BASE))
    theta, losses = plane(J, LOSSES)
    total = strategy(losses)
    total.backward()
    weights = torch.tensor(WANTED).double() / LOSSES
    torch.testing.assert_close(strategy.weights.double(), weights, rtol=0, atol=3e-6)
    torch.testing.assert_close(theta.grad, weights @ J, rtol=0, atol=1e-5)
    wanted = (torch.tensor(WANTED).double() * LOSSES.log()).sum()
    assert total.item() == pytest.approx(wanted.item(), abs=1e-5)


def test_until_the_base_is_known_it_is_scale_invariant() -> None:
    strategy = IGBv1(3)
    for _ in range(2):
        d, _ = solve(strategy, J, LOSSES)
        wanted, _ = solve(ScaleInvariant(3), J, LOSSES)
        torch.testing.assert_close(d, wanted, rtol=1e-6, atol=1e-9)
        assert not strategy.bases.any()
        strategy.end_epoch()
    assert strategy.bases.tolist() == pytest.approx(LOSSES.tolist())


def test_losses_at_their_base_weigh_the_same() -> None:
    strategy = IGBv1(3, base_epoch=0)
    epoch(strategy, BASE)
    torch.testing.assert_close(
        log_weights(strategy, torch.tensor(BASE).double()), torch.ones(3).double()
    )


def test_the_base_stays() -> None:
    strategy = IGBv1(3, base_epoch=0)
    epoch(strategy, BASE)
    for _ in range(3):
        epoch(strategy, LOSSES)
    assert strategy.bases.tolist() == list(BASE)


@settings(max_examples=25)
@given(st.lists(st.floats(0.01, 20), min_size=3, max_size=3))
def test_the_weights_of_the_logarithms_sum_to_the_number_of_tasks(losses: list[float]) -> None:
    strategy = IGBv1(3, base_epoch=0)
    epoch(strategy, BASE)
    v = log_weights(strategy, torch.tensor(losses).double())
    assert v.sum().item() == pytest.approx(3, rel=1e-5)
    assert (v > 0).all()


def test_the_scale_of_a_loss_does_not_change_the_step() -> None:
    c = torch.tensor([1e-3, 1.0, 1e3]).double()
    strategy, scaled = IGBv1(3, base_epoch=0), IGBv1(3, base_epoch=0)
    epoch(strategy, BASE)
    epoch(scaled, c * torch.tensor(BASE))
    d, _ = solve(strategy, J, LOSSES)
    other, _ = solve(scaled, c[:, None] * J, c * LOSSES)
    torch.testing.assert_close(other, d, rtol=1e-5, atol=1e-6)


def test_a_task_absent_from_the_base_epoch_gets_its_base_later() -> None:
    strategy = IGBv1(["a", "b", "c"], base_epoch=0)
    _, losses = plane(J, BASE)
    strategy({"a": losses[0], "b": losses[1]})
    strategy.end_epoch()
    assert strategy.bases.tolist() == [4.0, 1.0, 0.0]
    v = log_weights(strategy, torch.tensor([4.0, 1.0, 7.0]).double())
    assert v.tolist() == pytest.approx([1, 1, 1])  # it counts as being at its base
    strategy.end_epoch()
    assert strategy.bases.tolist() == [4.0, 1.0, 7.0]


def test_a_part_of_the_tasks() -> None:
    strategy = IGBv1(["a", "b", "c"], base_epoch=0)
    epoch(strategy, BASE)
    _, losses = plane(J, LOSSES)
    strategy({"a": losses[0], "c": losses[2]})
    v = 2 * torch.tensor([0.5, 1.0]).softmax(0)
    assert strategy.named_weights == pytest.approx({"a": v[0].item() / 2, "b": 0, "c": v[1].item()})


def test_edges() -> None:
    strategy = IGBv1(3, base_epoch=0)
    epoch(strategy, (0.0, 1.0, 1.0))
    for losses in ([0.0, 1.0, 1.0], [1e12, 1.0, 1e-12], [0.0, 0.0, 0.0]):
        d, w = solve(strategy, J, losses)
        assert d.isfinite().all()
        assert w.isfinite().all()
    with pytest.raises(ValueError, match="'1' is -1"):
        solve(strategy, J, [1.0, -1.0, 1.0])
    with pytest.raises(OptionError, match="base_epoch"):
        IGBv1(3, base_epoch=-1)
    d, w = solve(IGBv1(1), J[:1], [4.0])
    assert w.tolist() == pytest.approx([0.25])
