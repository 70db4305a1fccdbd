from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlweight import LDCMTL, GO4Align, Strategy
from mtlweight.strategies.grouping import group_means
from tests.contract.strategies import plane, solve

J = torch.eye(3).double()
LOSSES = torch.tensor([2.0, 0.5, 1.0]).double()
RAW = torch.tensor([0.583285, 2.333489, 1.166686]).double()


def step(strategy: Strategy, values: Any) -> Tensor:
    return solve(strategy, J, values)[1]


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=1e-6)


# --- k-means on a line ---------------------------------------------------------------------------


def partitions(numbers: list[int], groups: int) -> Iterator[list[list[int]]]:
    """Every way to put some things into at most so many groups."""
    if not numbers:
        yield []
        return
    for rest in partitions(numbers[1:], groups):
        for i in range(len(rest)):
            yield [*rest[:i], [numbers[0], *rest[i]], *rest[i + 1 :]]
        if len(rest) < groups:
            yield [[numbers[0]], *rest]


def cost_of(x: Tensor, means: Tensor) -> float:
    return (x - means).square().sum().item()


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.1, 2.0, 5.0, 5.0, 100.0]), min_size=1, max_size=6),
    st.integers(1, 7),
)
def test_no_partition_is_better(numbers: list[float], groups: int) -> None:
    x = torch.tensor(numbers).double()
    means = group_means(x, torch.ones(len(x), dtype=torch.bool), groups)
    best = float("inf")
    for partition in partitions(list(range(len(x))), groups):
        other = torch.zeros_like(x)
        for group in partition:
            other[group] = x[group].mean()
        best = min(best, cost_of(x, other))
    assert cost_of(x, means) == pytest.approx(best, abs=1e-9)
    assert len(set(means.tolist())) <= groups
    for mean in set(means.tolist()):
        assert x[means == mean].mean() == pytest.approx(mean)


@settings(max_examples=40)
@given(st.lists(st.floats(0, 1e4), min_size=2, max_size=9), st.integers(1, 5), st.randoms())
def test_the_order_of_numbers_does_not_matter(
    numbers: list[float], groups: int, random: Any
) -> None:
    x = torch.tensor(numbers).double()
    counts = torch.ones(len(x), dtype=torch.bool)
    order = list(range(len(x)))
    random.shuffle(order)
    torch.testing.assert_close(
        group_means(x[order], counts, groups), group_means(x, counts, groups)[order]
    )


def test_a_hundred_numbers() -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    x = torch.rand(100, generator=torch.Generator().manual_seed(0)).double() ** 3
    for groups in (1, 4, 100):
        means = group_means(x, torch.ones(100, dtype=torch.bool), groups)
        peer = cluster.KMeans(groups, n_init=3, random_state=0).fit(x[:, None].numpy())
        assert cost_of(x, means) <= peer.inertia_ + 1e-12
    torch.testing.assert_close(means, x, rtol=0, atol=0)


def test_single_precision_of_far_apart_numbers() -> None:
    x = torch.tensor([1.0, 1.1, 2.0, 2.1, 1e6])
    means = group_means(x, torch.ones(5, dtype=torch.bool), 3)
    torch.testing.assert_close(means, torch.tensor([1.05, 1.05, 2.05, 2.05, 1e6]))


def test_numbers_that_do_not_count() -> None:
    x = torch.tensor([1.0, 50.0, 3.0, 9.0, 10.0])
    counts = torch.tensor([True, False, True, True, True])
    means = group_means(x, counts, 2)
    torch.testing.assert_close(means[counts], torch.tensor([2.0, 2.0, 9.5, 9.5]))


def test_no_index_leaves_the_range() -> None:
    """On an accelerator that would be the end of the process, before anyone looks at the loss."""
    for bad in (torch.nan, torch.inf):
        x = torch.tensor([1.0, bad, 3.0, bad])
        assert group_means(x, torch.ones(4, dtype=torch.bool), 3).shape == (4,)


# --- GO4Align ------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [3, 4, 100])
def test_go4align_with_a_group_for_each(groups: int) -> None:
    close(step(GO4Align(3, groups=groups), LOSSES), RAW)


def test_go4align_with_fewer_groups() -> None:
    close(step(GO4Align(3, groups=1), LOSSES), RAW.mean().expand(3))
    low = (RAW[0] + RAW[2]) / 2
    close(step(GO4Align(3), LOSSES), torch.stack([low, RAW[1], low]))


def test_go4align_remembers_the_losses() -> None:
    strategy = GO4Align(3, groups=3, step_size=0.05)
    total = torch.zeros(3).double()
    for k in range(5):
        values = LOSSES * (1 + k)
        total += values
        wanted = values.sum() / values * (-0.05 * total).softmax(0)
        torch.testing.assert_close(step(strategy, values), wanted, rtol=1e-5, atol=1e-6)


def test_go4align_of_equal_losses_is_the_sum() -> None:
    for groups in (1, 2, 3):
        close(step(GO4Align(3, groups=groups), [7.0, 7.0, 7.0]), torch.ones(3))


def test_go4align_of_a_solved_task() -> None:
    strategy = GO4Align(3, groups=2)
    w = step(strategy, [2.0, 0.0, 1.0])
    assert w[1] == 0
    assert (w[[0, 2]] > 0).all()
    assert w.max() < 2
    assert step(strategy, [0.0, 0.0, 0.0]).tolist() == [0, 0, 0]


def test_go4align_does_not_let_a_spike_decide() -> None:
    strategy = GO4Align(3, groups=3)
    step(strategy, [1e15, 1.0, 1.0])
    w = step(strategy, [1.0, 1.0, 1.0])
    assert w[0] > 0.4


def test_go4align_of_fewer_tasks_than_groups() -> None:
    strategy = GO4Align(3, groups=3)
    theta = torch.ones((), requires_grad=True)
    strategy({"0": theta * 2.0, "2": theta * 1.0})
    wanted = torch.tensor([3 / 2, 0.0, 3.0]) * 0.5
    torch.testing.assert_close(strategy.weights, wanted, rtol=1e-3, atol=0)
    assert strategy.log_shares.exp().sum() == pytest.approx(1)


# --- LDC-MTL -------------------------------------------------------------------------------------

FIRST = torch.tensor([4.0, 1.0, 2.0]).double()
SIGMA = torch.sigmoid(torch.ones(()).double()).item()  # .731059


@pytest.mark.parametrize("pairs", ["all", "neighbours"])
def test_ldc_of_losses_in_step_has_no_penalty(pairs: Any) -> None:
    values, weights = [], []
    for penalty in (0.0, 5.0):
        strategy = LDCMTL(3, penalty=penalty, pairs=pairs)
        values.append(strategy(plane(J, FIRST)[1]).item())
        weights.append(strategy.weights)
        torch.testing.assert_close(strategy.logits, torch.ones(3), rtol=0, atol=1e-6)
    assert values == pytest.approx([1.0, 1.0])  # every loss counts as the least first one
    torch.testing.assert_close(weights[0], weights[1])
    torch.testing.assert_close(weights[0], torch.tensor([1 / 12, 1 / 3, 1 / 6]))


@pytest.mark.parametrize(
    ("pairs", "discrepancy", "slopes"),
    [("all", 2 / 3 * (0.5 + 0.2 + 0.3), (-4 / 3, 4 / 3, 0)), ("neighbours", 0.8, (-1, 2, -1))],
)
def test_ldc_by_hand(pairs: Any, discrepancy: float, slopes: tuple[float, ...]) -> None:
    """Second step: L / tau = (.5, 1, .7), all sigma still as at the start."""
    strategy = LDCMTL(3, penalty=0.1, pairs=pairs)
    step(strategy, FIRST)
    total = strategy(plane(J, FIRST * torch.tensor([0.5, 1.0, 0.7]).double())[1])
    assert total.item() == pytest.approx(2.2 / 3 + 0.1 * SIGMA * discrepancy, rel=1e-6)
    wanted = (1 / 3 + 0.1 * SIGMA * torch.tensor(slopes).double()) / FIRST
    torch.testing.assert_close(strategy.weights.double(), wanted, rtol=1e-5, atol=1e-7)


def test_ldc_of_two_tasks_is_the_paper_s() -> None:
    strategies = [LDCMTL(2, pairs="all"), LDCMTL(2, pairs="neighbours")]
    for k in range(10):
        for strategy in strategies:
            solve(strategy, torch.eye(2), [4.0 / (1 + k), 1.0])
    torch.testing.assert_close(strategies[0].weights, strategies[1].weights)


@pytest.mark.parametrize("pairs", ["all", "neighbours"])
def test_ldc_learns_as_by_torch(pairs: Any) -> None:
    strategy = LDCMTL(3, penalty=0.3, pairs=pairs, learning_rate=0.05)
    s = torch.ones(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([s], 0.05)
    generator = torch.Generator().manual_seed(1)
    for k in range(30):
        values = FIRST * (1.0 if k == 0 else 0.3 + torch.rand(3, generator=generator).double())
        leaf = values.clone().requires_grad_()
        x = s.sigmoid() * leaf / FIRST
        far = [(0, 1), (1, 2)] + ([(0, 2)] if pairs == "all" else [])
        gaps = sum((x[i] - x[j]).abs() for i, j in far)
        total: Any = x.sum() / s.sigmoid().sum() + 0.3 * gaps * (2 / 3 if pairs == "all" else 1)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        ours = strategy(plane(J, values)[1])
        assert ours.item() == pytest.approx(total.item(), rel=1e-4)
        torch.testing.assert_close(strategy.weights.double(), leaf.grad, rtol=1e-3, atol=1e-5)
    assert (strategy.logits - 1).abs().max() > 0.1
    torch.testing.assert_close(strategy.logits.double(), s.detach(), rtol=1e-3, atol=1e-4)


def test_ldc_the_scale_of_one_task_does_not_turn_the_gradient() -> None:
    scale = torch.tensor([1.0, 1e4, 1e-3]).double()
    plain, scaled = LDCMTL(3, penalty=0.3), LDCMTL(3, penalty=0.3)
    for k in range(20):
        values = FIRST * (1 + 0.5 * torch.sin(torch.tensor([1.0, 2.0, 3.0]).double() * k))
        d, _ = solve(plain, J, values)
        other, _ = solve(scaled, scale[:, None] * J, scale * values)
        torch.testing.assert_close(other / other.norm(), d / d.norm(), rtol=1e-4, atol=1e-5)


def test_ldc_neighbours_depend_on_the_order_and_all_pairs_do_not() -> None:
    values = torch.tensor([0.5, 1.0, 0.7]).double()
    order = [1, 0, 2]
    for pairs, same in (("all", True), ("neighbours", False)):
        listed: Any = {}
        for name, places in (("one", [0, 1, 2]), ("other", order)):
            strategy = LDCMTL(3, penalty=0.1, pairs=pairs)  # type: ignore[arg-type]
            step(strategy, FIRST[places])
            listed[name] = step(strategy, (FIRST * values)[places])
        equal = torch.allclose(listed["one"][order], listed["other"])
        assert equal == same


def test_ldc_survives_zeros_and_spikes() -> None:
    strategy = LDCMTL(3, learning_rate=1.0)
    assert step(strategy, [0.0, 0.0, 0.0]).isfinite().all()
    step(strategy, [0.0, 1.0, 1.0])
    step(strategy, [3.0, 1.0, 1.0])
    assert strategy.first_losses.tolist() == [3, 1, 1]
    for _ in range(100):
        step(strategy, [1e18, 1.0, 0.0])
    assert strategy.logits.isfinite().all()
    assert strategy.logits.abs().max() <= 10


@pytest.mark.parametrize("pairs", ["all", "neighbours"])
def test_rounding_is_no_discrepancy(pairs: Any) -> None:
    """All weighted losses of the first step are equal but for it, and Adam would not see that."""
    draw = torch.Generator().manual_seed(0)
    for _ in range(30):
        strategy = LDCMTL(3, penalty=0.3, pairs=pairs)
        values = torch.rand(3, dtype=torch.float64, generator=draw) + 0.1
        weights = step(strategy, values)
        even = weights.double() * values
        torch.testing.assert_close(even, even.mean().expand(3), rtol=1e-6, atol=0)
