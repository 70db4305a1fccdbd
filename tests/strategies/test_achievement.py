from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtlweight import DTP, Achievement, FocalAchievement
from tests.contract.strategies import plane, solve

T = 4
metric = st.floats(10, 40)


@given(st.lists(metric, min_size=T, max_size=T), st.floats(-20, 20))
def test_focal_does_not_see_a_common_shift(metrics: list[float], shift: float) -> None:
    one = FocalAchievement(T, [30.0] * T)
    other = FocalAchievement(T, [30.0 + shift] * T)
    one.end_epoch(metrics)
    other.end_epoch(metrics)
    torch.testing.assert_close(one.weights, other.weights, rtol=1e-5, atol=1e-7)


@given(st.lists(metric, min_size=T, max_size=T), st.floats(0.1, 3))
def test_focal_favours_the_furthest_behind(metrics: list[float], gamma: float) -> None:
    strategy = FocalAchievement(T, [30.0] * T, gamma=gamma)
    strategy.end_epoch(metrics)
    weights = strategy.weights.double()
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    for i in range(T):
        for j in range(T):
            if metrics[i] <= metrics[j]:
                assert weights[i] >= weights[j] - 1e-7
            assert weights[i] >= weights[j] * torch.tensor(-5.0).exp() * (1 - 1e-5)  # the cap


def test_focal_by_hand() -> None:
    strategy = FocalAchievement(3, [30.0, 28.0, 26.0], gamma=2.0, cap=1.0)
    strategy.end_epoch([29.7, 28.1, 20.0])
    wanted = torch.tensor([11.0, 11.0, 12.0]).softmax(0)  # 2 x 6 dB, all others at most one less
    torch.testing.assert_close(strategy.weights, wanted)
    flat = FocalAchievement(3, [30.0, 28.0, 26.0], gamma=0.0)
    flat.end_epoch([29.7, 28.1, 20.0])
    assert flat.weights.tolist() == pytest.approx([1 / 3] * 3)


def test_focal_by_direction() -> None:
    strategy = FocalAchievement(
        ["psnr", "lpips"],
        {"psnr": 30.0, "lpips": 0.2},
        higher_is_better={"psnr": True, "lpips": False},
    )
    strategy.end_epoch({"psnr": 30.0, "lpips": 0.5})
    torch.testing.assert_close(strategy.weights, torch.tensor([0.0, 0.3]).softmax(0))


def test_constant_between_epochs_and_equal_before_the_first() -> None:
    for strategy in (FocalAchievement(3, [1.0, 2, 3]), Achievement(3, [1.0, 2, 3])):
        for _ in range(3):
            _, w = solve(strategy, torch.eye(3))
            assert w.tolist() == pytest.approx([1 / 3] * 3)
        strategy.end_epoch([0.5, 1.9, 1.0])
        first = strategy.weights
        for _ in range(3):
            _, w = solve(strategy, torch.eye(3))
            torch.testing.assert_close(w, first)


def test_smoothing_and_missing_metrics() -> None:
    strategy = FocalAchievement(["a", "b"], [30.0, 30.0], smoothing=0.9)
    strategy.end_epoch([29.0, 29.0])
    strategy.end_epoch({"a": 28.0})
    gaps = torch.tensor([30 - (0.9 * 29 + 0.1 * 28), 1.0])
    torch.testing.assert_close(strategy.weights, gaps.softmax(0))
    strategy.end_epoch({"b": 29.0, "a": 28.0})
    gaps[0] = 30 - (0.9 * (0.9 * 29 + 0.1 * 28) + 0.1 * 28)
    torch.testing.assert_close(strategy.weights, gaps.softmax(0))


@pytest.mark.parametrize("normalization", ["softmax", "sum"])
def test_achievement_beyond_its_reference_counts_as_reached(normalization: str) -> None:
    strategy = Achievement(3, [0.5, 0.5, 0.5], normalization=normalization, gamma=1.5)
    strategy.end_epoch([0.9, 0.525, 0.2])
    weights = strategy.weights.tolist()
    assert weights[0] == pytest.approx(weights[1])  # 0.525 = the reference and its margin
    assert weights[2] > weights[0]
    strategy = Achievement(2, [0.5, 0.5], normalization=normalization)
    strategy.end_epoch([0.9, 0.9])
    assert strategy.weights.tolist() == pytest.approx([0.5, 0.5])


def test_achievement_of_errors() -> None:
    strategy = Achievement(
        2, [1.0, 1.0], higher_is_better=False, normalization="sum", margin=0, gamma=1
    )
    strategy.end_epoch([2.0, 4.0])  # one half and one quarter of what could be
    assert strategy.weights.tolist() == pytest.approx([0.5 / 1.25, 0.75 / 1.25])
    with pytest.raises(ValueError, match="positive"):
        strategy.end_epoch([0.0, 1.0])


def test_achievement_totals() -> None:
    values = torch.tensor([2.0, 0.5]).double()
    for total in ("geometric", "arithmetic"):
        strategy = Achievement(2, [0.5, 0.5], total=total, normalization="sum", margin=0, gamma=1)
        strategy.end_epoch([0.4, 0.1])
        share = torch.tensor([0.2, 0.8]).double()
        theta, losses = plane(torch.eye(2).double(), values)
        scalar = strategy(losses)
        scalar.backward()
        if total == "geometric":
            mean = (share * values.log()).sum().exp()
            wanted = mean * share / values
            assert scalar.item() == pytest.approx(mean.item(), rel=1e-6)
        else:
            wanted = share
            assert scalar.item() == pytest.approx((share * values).sum().item(), rel=1e-6)
        torch.testing.assert_close(strategy.weights.double(), wanted, rtol=1e-6, atol=0)
        torch.testing.assert_close(theta.grad, wanted, rtol=1e-6, atol=0)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=5), st.floats(0, 3))
def test_dtp_falls_with_the_metric(metrics: list[float], gamma: float) -> None:
    strategy = DTP(len(metrics), gamma=gamma)
    assert strategy.weights.tolist() == [1.0] * len(metrics)
    strategy.end_epoch(metrics)
    assert strategy.weights.isfinite().all()
    assert (strategy.weights > 0).all()
    order = sorted(range(len(metrics)), key=lambda i: metrics[i])
    ordered = strategy.weights[order].tolist()
    assert ordered == sorted(ordered, reverse=True)


def test_dtp_reads_shares_alone() -> None:
    for bad in (1.2, -0.1, 27.0):
        with pytest.raises(ValueError, match=str(bad)):
            DTP(1).end_epoch([bad])


def test_absent_tasks_leave_their_share_to_the_others() -> None:
    theta = torch.ones(3, requires_grad=True)
    strategy = FocalAchievement(3, [1.0, 1.0, 1.0])
    strategy.end_epoch([0.0, 0.5, 1.0])
    shares = strategy.weights
    strategy({"0": theta[0], "2": theta[2]})
    wanted = shares[[0, 2]] / shares[[0, 2]].sum()
    torch.testing.assert_close(strategy.weights[[0, 2]], wanted)
