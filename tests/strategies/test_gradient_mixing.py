from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlweight import OptionError, PiKE, QuotaSampler, VarianceAware, quotas, split
from mtlweight.strategies.gradient_mixing import GradientNoise
from tests.contract.strategies import plane, same_bits, snapshot, solve
from tests.contract.test_vectors import J3

BOTH = [PiKE, VarianceAware]
T = 3


def step(
    strategy: GradientNoise, rows: Tensor, counts: dict[str, int] | None = None, **options: Any
) -> Tensor:
    _, losses = plane(rows)
    strategy(losses, counts=counts, **options)
    return strategy.weights


# --- signal and noise ----------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("counts", [(1, 1, 1, 1), (1, 4, 2, 8)])
def test_both_are_exact_on_average(smoothing: float, counts: tuple[int, ...]) -> None:
    """Over all that chance could have done, the records are the truth, to rounding."""
    mean = torch.tensor([[2.0, -1.0], [0.5, 0.0]]).double()
    deviation = torch.tensor([[3.0, 0.0], [0.0, 0.25]]).double()  # of one sample
    square, noise = torch.zeros(2).double(), torch.zeros(2).double()
    outcomes = list(itertools.product((-1.0, 1.0), repeat=len(counts)))
    for signs in outcomes:
        strategy = VarianceAware(2, smoothing=smoothing)
        for sign, b in zip(signs, counts, strict=True):
            step(strategy, mean + sign * deviation / math.sqrt(b), {"0": b, "1": b})
        square += strategy.record["square"] / len(outcomes)
        noise += strategy.record["noise"] / len(outcomes)
    torch.testing.assert_close(square, torch.tensor([5.0, 0.25]).double())
    torch.testing.assert_close(noise, torch.tensor([9.0, 0.0625]).double())


def test_two_steps_by_hand() -> None:
    strategy = PiKE(2)
    one = torch.tensor([[1.0, 2.0], [0.0, 1.0]]).double()
    other = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).double()
    step(strategy, one, {"0": 2, "1": 1})
    assert strategy.record["steps"].tolist() == [0, 0]  # a first gradient tells nothing
    step(strategy, other, {"0": 3, "1": 1})
    assert strategy.record["square"].tolist() == pytest.approx([2.0, 1.0])
    assert strategy.record["noise"].tolist() == pytest.approx([5 / (1 / 2 + 1 / 3), 0.0])


def test_without_counts_each_loss_counts_as_one_sample() -> None:
    rows = torch.randn(6, T, 5, dtype=torch.float64)
    one, other = VarianceAware(T), VarianceAware(T)
    for jacobian in rows:
        step(one, jacobian)
        step(other, jacobian, {"0": 7, "1": 7, "2": 7})
    torch.testing.assert_close(other.record["noise"], 7 * one.record["noise"])
    torch.testing.assert_close(other.record["square"], one.record["square"])
    assert one.counts is None


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e15])
@pytest.mark.parametrize("build", BOTH)
def test_the_size_of_all_gradients_does_not_matter(build: Any, scale: float) -> None:
    rows = torch.randn(12, T, 5, generator=torch.Generator().manual_seed(0))  # float32
    one, other = build(T), build(T)
    for jacobian in rows:
        step(one, jacobian)
        step(other, scale * jacobian)
    one.end_epoch()
    other.end_epoch()
    torch.testing.assert_close(other.weights, one.weights, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(one.weights, torch.full((T,), 1 / T), atol=1e-3)


@pytest.mark.parametrize("build", BOTH)
def test_measuring_starts_anew_where_what_is_shared_changes(build: Any) -> None:
    strategy = build(T)
    for _ in range(3):
        step(strategy, torch.randn(T, 5))
    step(strategy, torch.randn(T, 4))
    assert strategy.averages.shape == (T, 4)
    assert strategy.record["seen"].tolist() == [1] * T
    assert strategy.record["steps"].tolist() == [0] * T


@pytest.mark.parametrize("build", BOTH)
def test_absent_tasks_stand_still(build: Any) -> None:
    strategy = build(T)
    rows = torch.randn(4, T, 5)
    for jacobian in rows[:3]:
        step(strategy, jacobian)
    before = snapshot(strategy)
    theta, losses = plane(rows[3][[0, 2]])
    strategy({"0": losses[0], "2": losses[1]}).backward()
    assert theta.grad is not None
    assert strategy.weights[1] == 0
    assert torch.equal(strategy.averages[1], before["averages"][1])
    for name, values in strategy.record.items():
        old = before["_extra_state"]["record"][name]
        assert same_bits(values[1], old[1]), name
    assert strategy.record["seen"].tolist() == [4, 3, 4]


@pytest.mark.parametrize("build", BOTH)
def test_features_have_no_past(build: Any) -> None:
    """Their gradients are those of the samples; their numbers differ from step to step."""
    strategy = build(2)
    theta = torch.ones(3, requires_grad=True)
    for b in (4, 6):
        features = theta * torch.ones(b, 3)
        losses = [features.sum(1).mean(), 2 * features.sum(1).mean()]
        strategy(losses, shared=features, counts={"0": b, "1": b})
    assert strategy.averages.shape == (2, 0)
    # Each sample has (1, 1, 1), and twice that.
    assert strategy.record["noise"].tolist() == pytest.approx([3.0, 12.0])
    assert strategy.record["square"].tolist() == pytest.approx([(3 / 4 + 3 / 6) / 2, 2.5])


@pytest.mark.parametrize("build", BOTH)
def test_the_state_is_complete(build: Any) -> None:
    rows = torch.randn(24, T, 5)
    whole, first, second = build(T), build(T), build(T)
    for jacobian in rows:
        step(whole, jacobian)
    for jacobian in rows[:13]:
        step(first, jacobian)
    second.load_state_dict(first.state_dict())
    for jacobian in rows[13:]:  # gradients of other leaves, of the same shapes
        step(second, jacobian, shared=None)
    assert same_bits(second.record, whole.record)
    whole.end_epoch()
    second.end_epoch()
    assert same_bits(whole.weights, second.weights)


@pytest.mark.parametrize("build", BOTH)
def test_no_gradients_at_all(build: Any) -> None:
    strategy = build(T, **({"every": 2} if build is PiKE else {}))
    for _ in range(4):
        d, w = solve(strategy, torch.zeros(T, 4))
        assert not d.any()
        assert w.tolist() == pytest.approx([1 / T] * T)
    strategy.end_epoch()
    assert strategy.weights.tolist() == pytest.approx([1 / T] * T)


@pytest.mark.parametrize("build", BOTH)
def test_the_only_task_is_trained_plainly(build: Any) -> None:
    strategy = build(1)
    for _ in range(12):
        d, w = solve(strategy, J3[:1])
        assert w.tolist() == [1.0]
        torch.testing.assert_close(d, J3[0])
    strategy.end_epoch()
    assert strategy.weights.tolist() == [1.0]


@pytest.mark.parametrize("build", BOTH)
def test_they_are_not_scale_invariant_and_may_hurt(build: Any) -> None:
    """What the table of properties says."""
    rows = torch.tensor([[1.0, 0.0], [-3.0, 1.0]]).double()
    directions = []
    for c in (1.0, 10.0):
        strategy = build(2)
        scaled = rows * torch.tensor([[c], [1.0]])
        for sign in (1, -1) * 15:
            solve(strategy, scaled * (1 + 0.1 * sign))
        strategy.end_epoch()
        d, _ = solve(strategy, scaled)
        directions.append(d / d.norm())
        if c == 1.0:
            assert (rows @ d).min() < 0
    assert not torch.allclose(directions[0], directions[1], atol=0.05)


# --- PiKE ----------------------------------------------------------------------------------------


def test_pike_by_its_rule() -> None:
    """Without noise, on squared lengths (10, 6, 9), in the paper's own units."""
    strategy = PiKE(3, zeta1=0.1, every=2, unit=1.0)
    for _ in range(2):
        d, w = solve(strategy, J3)
    wanted = torch.tensor([1.0, 0.6, 0.9]).double().softmax(0)
    torch.testing.assert_close(w, wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(d, w @ J3)
    for _ in range(2):
        _, w = solve(strategy, J3)
    wanted = torch.tensor([2.0, 1.2, 1.8]).double().softmax(0)
    torch.testing.assert_close(w, wanted, rtol=1e-6, atol=0)
    strategy.end_epoch()
    torch.testing.assert_close(strategy.weights.double(), wanted, rtol=1e-6, atol=0)


def test_pike_counts_noise_against_a_task() -> None:
    """Gradients m + e, then m - e: the lengths |m|^2 - |e|^2, the noise 2 |e|^2."""
    m = torch.tensor([[2.0, 0.0], [0.0, 2.0]]).double()
    e = torch.tensor([[0.0, 1.0], [0.0, 0.0]]).double()
    for counts, unit in [(None, 1.0), ({"0": 4, "1": 4}, 1.0), (None, None)]:
        strategy = PiKE(2, zeta1=0.3, zeta2=0.8, every=2, unit=unit)
        step(strategy, m + e, counts)
        w = step(strategy, m - e, counts)
        exponents = torch.tensor([0.3 * (4 - 1) - 0.4 * 2, 0.3 * 4])
        if unit is None:
            exponents /= ((4 - 1 + 2) + 4) / 2
        torch.testing.assert_close(w, exponents.softmax(0), rtol=1e-6, atol=0)


def test_pike_changes_every_so_many_steps() -> None:
    strategy = PiKE(3)
    for i in range(1, 31):
        before = strategy.shares
        w = step(strategy, J3 * (1 + 0.1 * i))
        assert torch.equal(strategy.shares, before) == (i % 10 != 0)
        torch.testing.assert_close(w, strategy.shares)


def test_pike_leaves_tasks_it_did_not_measure() -> None:
    strategy = PiKE(3, every=3, unit=1.0)
    step(strategy, J3)
    for _ in range(2):
        _, losses = plane(J3[:2])
        strategy({"0": losses[0], "1": losses[1]})
    assert strategy.shares[2].item() == pytest.approx(1 / 3)
    wanted = torch.tensor([1.0, 0.6]).softmax(0) * 2 / 3
    torch.testing.assert_close(strategy.shares[:2], wanted)


def test_pike_gives_up_no_task() -> None:
    strategy = PiKE(3, zeta1=1e6, every=2)
    for _ in range(6):
        w = step(strategy, J3)
    wanted = torch.tensor([1.0, math.exp(-10), math.exp(-10)])
    torch.testing.assert_close(w, wanted / wanted.sum(), rtol=1e-4, atol=0)
    for _ in range(60):
        w = step(strategy, J3.flip(0))
    assert w[0].item() == pytest.approx(math.exp(-10), rel=1e-3)
    assert w[2] > 0.99


def test_pike_given_features_goes_by_lengths() -> None:
    strategy = PiKE(2, zeta1=0.5, zeta2=100.0, every=1, unit=1.0)
    theta = torch.ones(3, requires_grad=True)
    features = theta * torch.ones(4, 3)
    strategy([features.sum(1).mean(), 2 * features.sum(1).mean()], shared=features)
    wanted = torch.tensor([0.5 * 3 / 4, 0.5 * 3]).softmax(0)
    torch.testing.assert_close(strategy.weights, wanted)


# --- VarianceAware -------------------------------------------------------------------------------


def told(sigma: Any, **options: Any) -> VarianceAware:
    """Returns the strategy after it has met tasks of exactly these deviations."""
    deviations = torch.as_tensor(sigma, dtype=torch.float64)
    strategy = VarianceAware(len(deviations), **options)
    e = torch.diag(deviations) / math.sqrt(2)  # of two gradients m + e and m - e
    m = torch.ones_like(e)
    step(strategy, m + e)
    step(strategy, m - e)
    torch.testing.assert_close(strategy.record["noise"].sqrt(), deviations)
    strategy.end_epoch()
    return strategy


def variance(w: Tensor, sigma: Tensor, q: Tensor, samples: float = 1) -> float:
    """Returns the variance of the gradient of the weighted sum, from samples drawn by q."""
    return float((w.square() * sigma.square() / (samples * q)).sum())


def test_variance_aware_by_hand() -> None:
    strategy = VarianceAware(3, weights=[2.0, 1.0, 1.0])
    assert strategy.weights.tolist() == [0.5, 0.25, 0.25]
    strategy = told([1.0, 3.0, 2.0], weights=[2.0, 1.0, 1.0])
    assert strategy.weights.tolist() == pytest.approx([2 / 7, 3 / 7, 2 / 7])
    d, w = solve(strategy, J3)  # constant until the next epoch
    assert w.tolist() == pytest.approx([2 / 7, 3 / 7, 2 / 7])
    torch.testing.assert_close(d, w @ J3)


def test_the_example_of_three_allocations() -> None:
    """Equal samples with loss weights, quotas by the weights, and the optimum, of 64 samples."""
    w, sigma = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([2.0, 1.0, 1.0, 0.5])
    q = told(sigma, weights=w).weights
    assert variance(w, sigma, torch.full((4,), 0.25), 64) == pytest.approx(0.0131, abs=5e-5)
    assert variance(w, sigma, w, 64) == pytest.approx(0.0156, abs=5e-5)
    assert variance(w, sigma, q, 64) == pytest.approx(0.0127, abs=5e-5)
    assert q.tolist() == pytest.approx([2 / 9, 2 / 9, 3 / 9, 2 / 9])


def test_with_equal_noise_the_weights_are_the_shares() -> None:
    """And even samples have 1.2 times the variance of quotas by weights (.4, .3, .2, .1)."""
    w, sigma = torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.ones(4)
    q = told(sigma, weights=w).weights
    torch.testing.assert_close(q, w)
    even = variance(w, sigma, torch.full((4,), 0.25))
    assert even / variance(w, sigma, q) == pytest.approx(1.2)


positive = st.floats(0.1, 5)


@settings(max_examples=50)
@given(st.lists(st.tuples(positive, positive, positive), min_size=2, max_size=6))
def test_no_other_shares_are_less_noisy(tasks: list[tuple[float, float, float]]) -> None:
    w, sigma, other = torch.tensor(tasks).double().unbind(1)
    w, other = w / w.sum(), other / other.sum()
    q = told(sigma, weights=w).weights.double()
    best = variance(w, sigma, q)
    assert best == pytest.approx(float((w * sigma).sum() ** 2), rel=1e-5)
    assert best <= variance(w, sigma, other) * (1 + 1e-6)
    squares = w * sigma.square()  # the deviation counts, not the variance
    assert best <= variance(w, sigma, squares / squares.sum()) * (1 + 1e-6)
    # And whatever the shares, the target is w.
    torch.testing.assert_close(split(w, q=q) * q / q.sum(), w)


def test_a_task_without_noise_stays_measured() -> None:
    strategy = told([0.0, 2.0, 1.0])
    assert strategy.weights.tolist() == pytest.approx([0.01 / 3.01, 2 / 3.01, 1 / 3.01])
    assert quotas(strategy.weights, 100, minimum=1).sum() == 100


def test_tasks_not_measured() -> None:
    strategy = VarianceAware(3)
    e = torch.eye(3).double() * torch.tensor([1.0, 3.0, 2.0])[:, None] / math.sqrt(2)
    for sign in (1, -1):
        _, losses = plane(1 + sign * e[:2])
        strategy({"0": losses[0], "1": losses[1]})
    strategy.end_epoch()  # the third counts as noisy as the others on average
    assert strategy.weights.tolist() == pytest.approx([1 / 6, 3 / 6, 2 / 6])
    strategy.end_epoch()  # and an epoch without steps changes nothing
    assert strategy.weights.tolist() == pytest.approx([1 / 6, 3 / 6, 2 / 6])


@pytest.mark.parametrize("bad", [[1.0, 0.0, 1.0], [1.0, -1.0, 1.0], {"0": 1.0}, [math.nan] * 3])
def test_bad_weights(bad: Any) -> None:
    with pytest.raises(OptionError, match="weight"):
        VarianceAware(3, weights=bad)


@pytest.mark.parametrize("counted", [True, False])
def test_shares_settle_under_quotas(counted: bool) -> None:
    """The noise of a batch falls with its quota: without counts the shares would chase that.

    With them they stay at 3 : 1, the deviations'; else they end at their power 2/3.
    """
    generator = torch.Generator().manual_seed(0)
    sigma = torch.tensor([3.0, 1.0]).double()
    strategy = VarianceAware(2)
    sampler = QuotaSampler([0] * 100 + [1] * 100, num_samples=960, batch_size=16)
    for _ in range(8):
        for keys in sampler:
            b = torch.tensor([sum(key.task == task for key in keys) for task in range(2)])
            noise = torch.randn(2, 400, generator=generator, dtype=torch.float64) / 20
            rows = 1 + noise * (sigma / b.sqrt())[:, None]
            step(strategy, rows, dict(zip("01", b.tolist(), strict=True)) if counted else None)
        strategy.end_epoch()
        sampler.set_weights(strategy.weights)
    power = 1.0 if counted else 2 / 3
    wanted = sigma**power / (sigma**power).sum()
    assert strategy.weights.tolist() == pytest.approx(wanted.tolist(), abs=0.02)
    assert sampler.quotas.sum() == 960
