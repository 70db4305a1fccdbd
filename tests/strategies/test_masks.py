from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mtlweight import GradDrop, TrimmedMean
from mtlweight.options import OptionError
from mtlweight.strategies import masks
from tests.contract.strategies import plane, solve
from tests.contract.test_vectors import J3


def jacobian(seed: int, tasks: int = 3, numbers: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, numbers, generator=generator, dtype=torch.float64)


# --- GradDrop ------------------------------------------------------------------------------------


def test_where_signs_agree_all_is_kept() -> None:
    strategy = GradDrop(3)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, 1.0]).double()
    for step in range(20):
        rows = jacobian(step).abs() * signs
        d, w = solve(strategy, rows)
        torch.testing.assert_close(d, rows.sum(0))
        assert w.tolist() == [1, 1, 1]


def test_each_side_is_kept_as_often_as_it_is_large() -> None:
    """And never anything between."""
    strategy, draws = GradDrop(3, seed=1), 600
    positive, negative = J3.clamp_min(0).sum(0), J3.clamp_max(0).sum(0)
    times = torch.zeros(4).double()
    for _ in range(draws):
        d, _ = solve(strategy, J3)
        assert ((d == positive) | (d == negative)).all()
        times += d == positive
    share = positive / (positive - negative)
    assert share.tolist() == [0.75, 0.75, 1.0, 1.0]
    deviation = (share * (1 - share) / draws).sqrt()
    assert ((times / draws - share).abs() <= 4 * deviation).all()


def test_a_leak_lets_through() -> None:
    rows = jacobian(0)
    whole, _ = solve(GradDrop(3, leak=1.0), rows)
    torch.testing.assert_close(whole, rows.sum(0))
    dropped, _ = solve(GradDrop(3, seed=7), rows)
    half, _ = solve(GradDrop(3, seed=7, leak=0.5), rows)
    torch.testing.assert_close(half, (whole + dropped) / 2)
    leaks = torch.tensor([0.0, 0.25, 1.0]).double()
    one_of_each, w = solve(GradDrop(3, seed=7, leak=leaks.tolist()), rows)
    side = (dropped > 0).double()
    mask = side * (rows > 0) + (1 - side) * (rows < 0)
    kept = (leaks[:, None] + (1 - leaks[:, None]) * mask) * rows
    torch.testing.assert_close(one_of_each, kept.sum(0))
    torch.testing.assert_close(w, kept.abs().sum(1) / rows.abs().sum(1), rtol=1e-6, atol=1e-7)


def test_a_leak_by_name_belongs_to_the_task_when_others_are_absent() -> None:
    strategy = GradDrop(("a", "b", "c"), leak={"a": 0.0, "b": 0.0, "c": 1.0})
    rows = torch.tensor([[1.0], [1.0], [-1e-3]]).double()
    for _ in range(10):
        theta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        losses = {"a": rows[0] @ theta + 1, "c": rows[2] @ theta + 1}
        strategy(losses, shared=[theta]).backward()
        assert theta.grad is not None
        assert strategy.weights[2] == 1
        assert theta.grad.item() in (pytest.approx(0.999), pytest.approx(-0.001))


@pytest.mark.parametrize("leak", [-0.1, 1.1, float("nan"), [0.5, 0.5], {"a": 1}])
def test_bad_leaks_are_refused(leak: Any) -> None:
    with pytest.raises(OptionError, match="leak"):
        GradDrop(3, leak=leak)


def test_seeds_and_steps_draw_their_own() -> None:
    rows = jacobian(0, 4, 64)
    first = [solve(strategy := GradDrop(4), rows)[0], solve(strategy, rows)[0]]
    second = [solve(strategy := GradDrop(4), rows)[0], solve(strategy, rows)[0]]
    other = solve(GradDrop(4, seed=1), rows)[0]
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other)


def test_lots_of_columns_are_drawn_apart() -> None:
    """More columns than one piece of work has."""
    numbers = 200_003
    rows = torch.ones(2, numbers)
    rows[1] = -1
    theta, losses = plane(rows)
    GradDrop(2)(losses).backward()
    assert theta.grad is not None
    assert (theta.grad.abs() == 1).all()
    assert (theta.grad > 0).float().mean().item() == pytest.approx(0.5, abs=0.01)
    halves = (theta.grad[: numbers // 2], theta.grad[-(numbers // 2) :])
    assert (halves[0] == halves[1]).float().mean().item() == pytest.approx(0.5, abs=0.01)


def test_lots_are_uniform() -> None:
    lots = masks._lots(200_001, torch.Generator().manual_seed(0))
    assert lots.shape == (200_001,)
    assert lots.abs().max() < 1
    counts = lots.histc(16, -1, 1)
    assert ((counts - 12_500).abs() < 5 * 12_500**0.5).all()
    assert (lots[:-1] * lots[1:]).mean().item() == pytest.approx(0, abs=0.005)


def test_zero_gradients() -> None:
    rows = jacobian(0)
    rows[1] = 0
    rows[:, 2] = 0
    d, w = solve(GradDrop(3), rows)
    assert d.isfinite().all()
    assert d[2] == 0
    assert w[1] == 1
    d, w = solve(GradDrop(3), 0 * rows)
    assert not d.any()
    assert w.tolist() == [1, 1, 1]


def drop_on(z: Tensor, gradients: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Returns what features worth z `[B, ...]` get of losses with gradients `[T, B, ...]`."""
    leaf = z.clone().requires_grad_()
    features = leaf * 1.0
    losses = [100 + (g * features).sum() for g in gradients]
    strategy = GradDrop(len(gradients), **options)
    strategy(losses, shared=features).backward()
    assert leaf.grad is not None
    return leaf.grad, strategy.weights


@pytest.mark.parametrize("leak", [0.0, 0.3])
def test_features_share_the_lot_of_a_coordinate(
    leak: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Algorithm 1: signs of the inputs times gradients, summed over the batch."""
    for seed in range(10):
        z, gradients = jacobian(seed, 5, 8).view(5, 2, 4), jacobian(seed + 50, 15, 8)
        gradients = gradients.view(3, 5, 2, 4)
        draws = torch.rand(8, generator=torch.Generator().manual_seed(seed)).double()
        with monkeypatch.context() as patch:
            patch.setattr(masks, "_lots", lambda *_, draws=draws: 2 * draws - 1)
            got, w = drop_on(z, gradients, leak=leak)
        x = (gradients * z.sign()).sum(1).view(3, 8)
        p = (1 + x.sum(0) / x.abs().sum(0)) / 2
        mask = ((p > draws) & (x > 0)) | ((p < draws) & (x < 0))
        kept = (leak + (1 - leak) * mask.double()).view(3, 1, 2, 4) * gradients
        torch.testing.assert_close(got, kept.sum(0))
        wanted = kept.abs().flatten(1).sum(1) / gradients.abs().flatten(1).sum(1)
        torch.testing.assert_close(w.double(), wanted, rtol=1e-6, atol=1e-7)


def test_items_that_cancel_are_dropped_alike() -> None:
    """The sum over the batch decides: an item is kept against its own sign."""
    z = torch.tensor([[1.0], [-1.0]]).double()
    gradients = torch.tensor([[[2.0], [1.0]], [[-3.0], [-3.5]]]).double()  # x = 1 and .5
    got, w = drop_on(z, gradients)
    torch.testing.assert_close(got, gradients.sum(0))
    assert w.tolist() == [1, 1]


def test_several_features() -> None:
    leaf = torch.ones(6, dtype=torch.float64).requires_grad_()
    features = [leaf[:4].view(2, 2) * 1.0, leaf[4:].sum() * 1.0]
    losses = [3 + features[0].sum() + features[1], 3 + 2 * features[0].sum() + features[1]]
    strategy = GradDrop(2)
    strategy(losses, shared=iter(features)).backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [3, 3, 3, 3, 2, 2]
    assert strategy.features == []


# --- TrimmedMean ---------------------------------------------------------------------------------


def sorted_mean(rows: Tensor, b: int) -> Tensor:
    return rows.sort(dim=0).values[b : len(rows) - b].mean(0)


@pytest.mark.parametrize(("tasks", "trim"), [(3, 0), (3, 1), (7, 1), (7, 2), (7, 3), (20, 4)])
def test_it_is_the_mean_of_the_middle(tasks: int, trim: int) -> None:
    for seed in range(5):
        rows = jacobian(seed, tasks, 11)
        d, _ = solve(TrimmedMean(tasks, trim=trim), rows)
        torch.testing.assert_close(d, sorted_mean(rows, trim))


@given(st.integers(1, 9), st.integers(0, 4), st.lists(st.integers(-2, 2), min_size=9, max_size=9))
def test_ties(tasks: int, trim: int, values: list[int]) -> None:
    """And too few tasks for the cut."""
    rows = torch.tensor(values[:tasks]).double()[:, None] * torch.tensor([[1.0, -3.0]])
    d, w = solve(TrimmedMean(tasks, trim=trim), rows)
    torch.testing.assert_close(d, sorted_mean(rows, min(trim, (tasks - 1) // 2)), atol=1e-9, rtol=0)
    assert (w >= -1e-7).all()
    assert (w <= 1 + 1e-6).all()


@pytest.mark.parametrize("outlier", [1e6, -1e30, 1e300])
def test_one_outlier_changes_nothing(outlier: float) -> None:
    rows = jacobian(0, 5)
    rows[2] = outlier
    d, w = solve(TrimmedMean(5), rows if abs(outlier) < 1e200 else rows.clamp_max(1e150))
    low = rows.clone()
    low[2] = 1e4 if outlier > 0 else -1e4
    wanted, _ = solve(TrimmedMean(5), low)
    torch.testing.assert_close(d, wanted, rtol=1e-12, atol=1e-12)
    assert w[2] == 0


def test_identical_gradients_and_weights() -> None:
    rows = jacobian(0, 1).expand(5, 6)
    for trim in (1, 2):
        d, w = solve(TrimmedMean(5, trim=trim), rows)
        torch.testing.assert_close(d, rows[0])
        assert w.tolist() == pytest.approx([0.2] * 5)
    rows = torch.tensor([[1.0, 1.0], [2.0, 5.0], [3.0, 3.0]]).double()
    _, w = solve(TrimmedMean(3), rows)
    assert w.tolist() == pytest.approx([0, 2 / 7, 3 / 6])
    _, w = solve(TrimmedMean(3), 0 * rows)
    assert w.isfinite().all()


@pytest.mark.parametrize("trim", [1, 2])
def test_many_columns_in_pieces(trim: int) -> None:
    rows = torch.randn(5, 120_007, generator=torch.Generator().manual_seed(0))
    theta, losses = plane(rows)
    TrimmedMean(5, trim=trim)(losses).backward()
    assert theta.grad is not None
    torch.testing.assert_close(theta.grad, sorted_mean(rows, trim))


def test_one_and_two_tasks_are_the_mean() -> None:
    for tasks in (1, 2):
        rows = jacobian(0, tasks)
        d, w = solve(TrimmedMean(tasks, trim=3), rows)
        torch.testing.assert_close(d, rows.mean(0), rtol=1e-6, atol=1e-7)
        assert w.tolist() == pytest.approx([1 / tasks] * tasks)


@pytest.mark.parametrize("trim", [-1, 0.5, "1"])
def test_bad_trims_are_refused(trim: Any) -> None:
    if trim == "1":
        assert TrimmedMean(3, trim=trim).trim == 1  # as every number that is written out
        return
    with pytest.raises(OptionError, match="trim"):
        TrimmedMean(3, trim=trim)
