from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtlweight import DTP, FMTL, Achievement, FocalAchievement
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


def test_fmtl_by_hand() -> None:
    strategy = FMTL(["a", "b", "c"])
    assert strategy.weights.tolist() == pytest.approx([1 / 3] * 3)
    strategy.end_epoch({"c": 0.9, "a": 0.5, "b": 0.8})
    assert strategy.weights.tolist() == pytest.approx([25 / 30, 4 / 30, 1 / 30])
    strategy.end_epoch({"a": 0.9, "b": 0.8, "c": 0.9})  # smoothed: .54, .8, .9
    wanted = torch.tensor([0.46, 0.2, 0.1]).square()
    torch.testing.assert_close(strategy.weights, wanted / wanted.sum())


@given(st.lists(st.floats(0, 1), min_size=2, max_size=5), st.floats(0, 4))
def test_fmtl_falls_with_the_metric(metrics: list[float], gamma: float) -> None:
    strategy = FMTL(len(metrics), gamma=gamma)
    strategy.end_epoch(metrics)
    assert strategy.weights.sum().item() == pytest.approx(1, abs=1e-6)
    assert (strategy.weights > 0).all()
    order = sorted(range(len(metrics)), key=lambda i: metrics[i])
    ordered = strategy.weights[order].tolist()
    assert ordered == sorted(ordered, reverse=True)


def test_fmtl_by_its_focus() -> None:
    """0 is uniform; and 2, its default, is not 1, as it is in the code that inspired it."""
    weights = {}
    for gamma in (0.0, 1.0, 2.0):
        strategy = FMTL(2, gamma=gamma)
        strategy.end_epoch([0.4, 0.8])
        weights[gamma] = strategy.weights.tolist()
    assert weights[0.0] == pytest.approx([1 / 2, 1 / 2])
    assert weights[1.0] == pytest.approx([3 / 4, 1 / 4])
    assert weights[2.0] == pytest.approx([9 / 10, 1 / 10])
    strategy = FMTL(2)
    strategy.end_epoch([1.0, 1.0])
    assert strategy.weights.tolist() == pytest.approx([1 / 2, 1 / 2])
    strategy = FMTL(2, smoothing=0.0)
    strategy.end_epoch([1.0, 0.5])  # a perfect task keeps a little
    assert strategy.weights.tolist() == pytest.approx([4e-6, 1 - 4e-6], abs=1e-8)


def test_fmtl_reads_shares_alone() -> None:
    for bad in (1.2, -0.1, 27.0):
        with pytest.raises(ValueError, match=str(bad)):
            FMTL(1).end_epoch([bad])


def test_fmtl_does_not_see_the_losses() -> None:
    """Its weights; its gradient follows their scales, and it may hurt a task."""
    jacobian = torch.tensor([[1.0, 0.0], [-3.0, 1.0]]).double()
    directions = []
    for c in (1.0, 10.0):
        strategy = FMTL(2)
        strategy.end_epoch([0.5, 0.5])
        rows = jacobian * torch.tensor([[c], [1.0]])
        d, w = solve(strategy, rows, [c, 1.0])
        assert w.tolist() == pytest.approx([0.5, 0.5])
        directions.append(d / d.norm())
        if c == 1.0:
            assert (rows @ d).min() < 0
    assert not torch.allclose(directions[0], directions[1], atol=0.05)


@pytest.mark.parametrize(
    ("normalization", "wanted"),
    [("softmax", (0.4045, 0.2958, 0.2997)), ("sum", (0.8904, 0.0368, 0.0727))],
)
def test_achievement_with_the_authors_potentials(
    normalization: Any, wanted: tuple[float, ...]
) -> None:
    """A softmax of numbers between 0 and 1 is nearly flat."""
    strategy = Achievement(3, [0.4443, 0.8082, 0.4553], normalization=normalization)
    strategy.end_epoch([0.20, 0.75, 0.40])
    assert strategy.weights.tolist() == pytest.approx(wanted, abs=5e-5)


@pytest.mark.parametrize(
    ("gamma", "wanted"),
    [
        (1.0, (0.207, 0.209, 0.248, 0.335)),
        (2.0, (0.165, 0.168, 0.236, 0.431)),
        (4.0, (0.092, 0.095, 0.188, 0.625)),
    ],
)
def test_focal_on_gaps_of_the_size_in_the_paper(gamma: float, wanted: tuple[float, ...]) -> None:
    strategy = FocalAchievement(4, [29.92, 29.93, 30.1, 30.4], gamma=gamma)
    strategy.end_epoch([30.0] * 4)
    assert strategy.weights.tolist() == pytest.approx(wanted, abs=6e-4)
