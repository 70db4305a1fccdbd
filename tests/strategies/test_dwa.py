from __future__ import annotations

import pytest
import torch

from mtlweight import DWA
from tests.contract.strategies import solve

J = torch.eye(3).double()


def epoch(strategy: DWA, *losses: tuple[float, ...]) -> None:
    for values in losses:
        solve(strategy, J, torch.tensor(values).double())
    strategy.end_epoch()


def test_two_epochs_of_equal_weights() -> None:
    strategy = DWA(3)
    for factor in (1.0, 0.3):
        solve(strategy, J, torch.tensor([4.0, 1.0, 2.0]).double() * factor)
        assert strategy.weights.tolist() == pytest.approx([1 / 3] * 3)
        strategy.end_epoch()
    solve(strategy, J, torch.tensor([1.0, 1.0, 1.0]).double())
    assert strategy.weights.tolist() == pytest.approx([1 / 3] * 3)  # all fell alike
    strategy.end_epoch()
    assert strategy.weights[1] > strategy.weights[2] > strategy.weights[0] - 1e-6


def test_the_task_that_fell_least_gains() -> None:
    strategy = DWA(3)
    epoch(strategy, (1.0, 1.0, 1.0))
    epoch(strategy, (0.9, 0.5, 0.1))
    assert strategy.weights.tolist() == sorted(strategy.weights.tolist(), reverse=True)


def test_an_endless_temperature_is_equal_weights() -> None:
    strategy = DWA(3, temperature=1e6)
    epoch(strategy, (1.0, 1.0, 1.0))
    epoch(strategy, (0.9, 0.5, 0.1))
    assert strategy.weights.tolist() == pytest.approx([1 / 3] * 3, abs=1e-6)


def test_the_mean_of_an_epoch_counts_not_its_end() -> None:
    one, other = DWA(2), DWA(2)
    jacobian = torch.eye(2).double()
    for strategy, losses in (
        (one, [[(1, 1)], [(0.2, 0.4), (0.4, 1.2)]]),
        (other, [[(1, 1)], [(0.3, 0.8)]]),
    ):
        for values in losses:
            for value in values:
                solve(strategy, jacobian, torch.tensor(value).double())
            strategy.end_epoch()
    torch.testing.assert_close(one.weights, other.weights)


def test_zero_losses_and_spikes() -> None:
    strategy = DWA(3)
    epoch(strategy, (0.0, 1e-6, 1.0))
    epoch(strategy, (1.0, 1.0, 1.0))
    # 1/0 counts as standing still; 1e6 counts as 10
    wanted = torch.tensor([1.0, 10.0, 1.0]).div(2).softmax(0)
    torch.testing.assert_close(strategy.weights, wanted)


def test_a_task_absent_for_an_epoch_keeps_its_ratio() -> None:
    strategy = DWA(3)
    epoch(strategy, (1.0, 1.0, 1.0))
    epoch(strategy, (0.9, 0.5, 0.1))
    theta = torch.ones(3, requires_grad=True)
    strategy({"0": theta[0] * 0.9, "2": theta[2] * 0.1})
    strategy.end_epoch()
    wanted = torch.tensor([1.0, 0.5, 1.0]).div(2).softmax(0)
    torch.testing.assert_close(strategy.weights, wanted)
    epoch(strategy, (0.9, 0.25, 0.1))  # and is compared to the last epoch that it was in
    wanted = torch.tensor([1.0, 0.5, 1.0]).div(2).softmax(0)
    torch.testing.assert_close(strategy.weights, wanted)


def test_an_epoch_without_steps_changes_nothing() -> None:
    strategy = DWA(3)
    epoch(strategy, (1.0, 1.0, 1.0))
    epoch(strategy, (0.9, 0.5, 0.1))
    weights = strategy.weights
    strategy.end_epoch()
    torch.testing.assert_close(strategy.weights, weights)
