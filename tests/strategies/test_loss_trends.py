from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlweight import OptionError, ReLoBRaLo, SoftAdapt, Strategy
from tests.contract.strategies import plane, solve

J = torch.eye(3).double()


def weights_on(strategy: Strategy, *steps: Any) -> Tensor:
    """Returns the weights in the last of some steps."""
    for losses in steps:
        _, w = solve(strategy, J[: len(losses)], torch.tensor(losses).double())
    return w


# --- SoftAdapt -----------------------------------------------------------------------------------

BEFORE, NOW = (2.1, 0.3, 1.0), (2.0, 0.5, 1.0)  # slopes -.1, .2, 0


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, (0.289433, 0.390694, 0.319873)),
        ({"loss_weighted": True}, (0.529086, 0.178548, 0.292365)),
        ({"normalized": True}, (0.195546, 0.531548, 0.272906)),
    ],
)
def test_softadapt(options: Any, wanted: tuple[float, ...]) -> None:
    strategy = SoftAdapt(3, beta=1.0, lookback=1, **options)
    theta, losses = plane(J, BEFORE)
    assert strategy(losses).item() == pytest.approx(sum(BEFORE) / 3)
    theta, losses = plane(J, NOW)
    total = strategy(losses)
    total.backward()
    assert strategy.weights.tolist() == pytest.approx(wanted, abs=1.5e-6)
    assert theta.grad is not None
    assert theta.grad.tolist() == pytest.approx(wanted, abs=1.5e-6)
    value = sum(w * x for w, x in zip(wanted, NOW, strict=True))
    assert total.item() == pytest.approx(value, rel=1e-5)


def test_both_variants_at_once() -> None:
    w = weights_on(
        SoftAdapt(3, beta=1.0, lookback=1, normalized=True, loss_weighted=True), BEFORE, NOW
    )
    wanted = torch.tensor(NOW) * torch.tensor([-1 / 3, 2 / 3, 0.0]).exp()
    torch.testing.assert_close(w.float(), wanted / wanted.sum())


def test_the_slope_is_that_of_the_last_n_steps() -> None:
    strategy = SoftAdapt(2, beta=2.0, lookback=3)
    history = [(5.0, 1.0), (1.0, 7.0), (3.0, 2.0), (4.0, 4.0), (2.0, 8.0)]
    for step, losses in enumerate(history):
        w = weights_on(strategy, losses)
        if step < 3:
            assert w.tolist() == pytest.approx([0.5, 0.5])
            continue
        slopes = (torch.tensor(losses) - torch.tensor(history[step - 3])) / 3
        torch.testing.assert_close(w.float(), (2 * slopes).softmax(0))


@pytest.mark.parametrize("normalized", [False, True])
def test_equal_slopes_are_equal_weights(normalized: bool) -> None:
    for change in (0.0, -0.5, 3.0):
        strategy = SoftAdapt(3, beta=7.0, lookback=1, normalized=normalized)
        w = weights_on(strategy, (1.0, 2.0, 4.0), (1.0 + change, 2.0 + change, 4.0 + change))
        assert w.tolist() == pytest.approx([1 / 3] * 3, rel=1e-5)


def test_below_zero_beta_favours_the_best() -> None:
    worst = weights_on(SoftAdapt(3, beta=1.0, lookback=1), BEFORE, NOW)
    best = weights_on(SoftAdapt(3, beta=-1.0, lookback=1), BEFORE, NOW)
    assert worst.argsort().tolist() == [0, 2, 1]
    assert best.argsort().tolist() == [1, 2, 0]


def test_normalized_slopes_do_not_see_the_unit_of_the_losses() -> None:
    scaled = [tuple(1e6 * x for x in losses) for losses in (BEFORE, NOW)]
    w = weights_on(SoftAdapt(3, lookback=1, normalized=True), *scaled)
    same = weights_on(SoftAdapt(3, lookback=1, normalized=True), BEFORE, NOW)
    torch.testing.assert_close(w, same, rtol=1e-5, atol=0)


@pytest.mark.parametrize("build", [SoftAdapt, ReLoBRaLo])
def test_a_spike_of_one_task_does_not_stop_the_others(build: type) -> None:
    options = {"lookback": 1} if build is SoftAdapt else {"alpha": 0.0}
    strategy = build(3, **options)
    w = weights_on(strategy, (1.0, 1.0, 1.0), (1e9, 1.0, 1.0))
    assert w[0] > 0.999
    assert w[1:].tolist() == pytest.approx([torch.tensor(-10.0).exp().item()] * 2, rel=1e-3)


def test_absent_tasks_keep_their_last_losses() -> None:
    strategy = SoftAdapt(["a", "b", "c"], beta=1.0, lookback=1)
    weights_on(strategy, BEFORE)
    _, losses = plane(J, (9.0, 9.0, 9.0))
    strategy({"b": losses[1]})
    assert strategy.named_weights == pytest.approx({"a": 0, "b": 1, "c": 0})
    assert strategy.recent[:, 0].tolist() == pytest.approx([2.1, 9.0, 1.0])
    slopes = torch.tensor([-0.1, -8.5, 0.0])
    w = weights_on(strategy, NOW)
    torch.testing.assert_close(w.float(), slopes.softmax(0), rtol=1e-4, atol=1e-7)


def test_a_task_that_joins_makes_all_wait() -> None:
    strategy = SoftAdapt(["a", "b", "c"], beta=1.0, lookback=1)
    _, losses = plane(J, (1.0, 5.0, 1.0))
    strategy({"a": losses[0], "b": losses[1]})
    w = weights_on(strategy, (2.0, 2.0, 2.0))
    assert w.tolist() == pytest.approx([1 / 3] * 3)
    w = weights_on(strategy, (2.0, 2.0, 3.0))
    assert w[2] > w[0]


def test_what_softadapt_refuses() -> None:
    strategy = SoftAdapt(["a", "b"], loss_weighted=True)
    with pytest.raises(ValueError, match=r"'b' is -1\.0"):
        solve(strategy, torch.eye(2), [1.0, -1.0])
    solve(SoftAdapt(2), torch.eye(2), [1.0, -1.0])
    bad: Any
    for bad in ({"lookback": 0}, {"beta": float("inf")}, {"lookback": 1.5}):
        with pytest.raises(OptionError, match=next(iter(bad))):
            SoftAdapt(2, **bad)


def test_zero_losses_in_proportion_to_losses() -> None:
    strategy = SoftAdapt(2, lookback=1, loss_weighted=True)
    w = weights_on(strategy, (0.0, 0.0), (0.0, 0.0))
    assert w.tolist() == pytest.approx([0.5, 0.5])
    assert weights_on(strategy, (0.0, 1.0)).tolist() == pytest.approx([0.0, 1.0])


# --- ReLoBRaLo -----------------------------------------------------------------------------------


def test_without_a_past_it_is_the_softmax_of_ratios() -> None:
    strategy = ReLoBRaLo(3, alpha=0.0, temperature=1.0)
    assert weights_on(strategy, (4.0, 1.0, 2.0)).tolist() == pytest.approx([1 / 3] * 3)
    w = weights_on(strategy, (2.0, 0.5, 2.0))
    torch.testing.assert_close(w.float(), torch.tensor([0.5, 0.5, 1.0]).softmax(0))
    w = weights_on(strategy, (1.0, 1.0, 2.0))  # the step before counts
    torch.testing.assert_close(w.float(), torch.tensor([0.5, 2.0, 1.0]).softmax(0))
    rescaled = ReLoBRaLo(3, alpha=0.0, temperature=1.0, rescale="tasks")
    w = weights_on(rescaled, (4.0, 1.0, 2.0), (2.0, 0.5, 2.0))
    torch.testing.assert_close(w.float(), 3 * torch.tensor([0.5, 0.5, 1.0]).softmax(0))


def test_with_the_past_alone_the_weights_are_frozen() -> None:
    strategy = ReLoBRaLo(3, alpha=1.0, rho=1.0)
    for losses in ((4.0, 1.0, 2.0), (1.0, 1.0, 1.0), (0.1, 7.0, 0.0), (3.0, 3.0, 3.0)):
        assert weights_on(strategy, losses).tolist() == pytest.approx([1 / 3] * 3)


def test_looking_back_at_the_start_alone() -> None:
    strategy = ReLoBRaLo(3, alpha=1.0, rho=0.0, temperature=1.0)
    w = weights_on(strategy, (4.0, 1.0, 2.0), (2.0, 0.5, 2.0), (1.0, 1.0, 2.0))
    torch.testing.assert_close(w.float(), torch.tensor([0.25, 1.0, 1.0]).softmax(0))


def test_the_recursion_of_the_paper() -> None:
    """Whatever is drawn, against the formula with weights that sum to T, in double precision."""
    alpha, tau = 0.7, 0.5
    strategy = ReLoBRaLo(3, alpha=alpha, rho=0.6, temperature=tau, rescale="tasks", seed=3)
    generator = torch.Generator().manual_seed(0)
    history = 0.5 + torch.rand(40, 3, generator=generator, dtype=torch.float64)
    lambdas, drawn = torch.ones(3).double(), []
    for k, losses in enumerate(history):
        rho = float(torch.rand((), generator=strategy.generator()) < 0.6)
        drawn.append(rho)
        since_start = 3 * (losses / (tau * history[0])).softmax(0)
        since_last = 3 * (losses / (tau * history[max(k - 1, 0)])).softmax(0)
        lambdas = alpha * (rho * lambdas + (1 - rho) * since_start) + (1 - alpha) * since_last
        _, w = solve(strategy, J, losses)
        torch.testing.assert_close(w, lambdas, rtol=1e-5, atol=1e-6)
    assert 0 < sum(drawn) < 40


def test_draws() -> None:
    """As often as asked for; the same for the same seed."""

    def run(seed: int) -> list[list[float]]:
        strategy = ReLoBRaLo(2, alpha=1.0, rho=0.8, temperature=1.0, seed=seed)
        found = []
        for step in range(300):
            # The ratio to the start is new in each step: unless it is drawn, weights stay.
            losses = (1.0 + step / 300, 1.0)
            found.append(weights_on(strategy, losses).tolist())
        return found

    one = run(0)
    assert run(0) == one
    assert run(1) != one
    changes = sum(a != b for a, b in itertools.pairwise(one))
    assert 35 <= changes <= 85  # 60 of 300 on average, sigma 7


def test_older_losses_of_zero() -> None:
    strategy = ReLoBRaLo(2, alpha=0.0, temperature=1.0)
    w = weights_on(strategy, (0.0, 1.0), (5.0, 1.0))  # 5/0 counts as standing still
    assert w.tolist() == pytest.approx([0.5, 0.5])
    assert strategy.first_losses.tolist() == [5.0, 1.0]
    w = weights_on(strategy, (1e9, 1.0))
    torch.testing.assert_close(w.float(), torch.tensor([10.0, 1.0]).softmax(0))


def test_scales_do_not_matter_to_the_weights() -> None:
    history = ((2.0, 3.0, 1.0), (1.0, 2.5, 1.0), (0.5, 2.9, 0.2))
    strategy = ReLoBRaLo(3, alpha=0.5)
    scaled = ReLoBRaLo(3, alpha=0.5)
    for losses in history:
        a = weights_on(strategy, losses)
        b = weights_on(scaled, (1e6 * losses[0], 1e-6 * losses[1], losses[2]))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@settings(max_examples=15)
@given(st.lists(st.sets(st.sampled_from("abc"), min_size=1), min_size=20, max_size=60))
def test_the_sum_stays_one_whoever_is_there(batches: list[set[str]]) -> None:
    """A sum that is multiplied by itself would leave one, and then the numbers."""
    strategy = ReLoBRaLo(["a", "b", "c"], alpha=0.9, rho=0.5)
    for step, present in enumerate(batches):
        theta = torch.ones(3, requires_grad=True)
        losses = {task: theta["abc".index(task)] * (1 + step % 3) for task in sorted(present)}
        strategy(losses)
        assert strategy.weights.sum().item() == pytest.approx(1, abs=1e-6)
        assert strategy.shares.sum().item() == pytest.approx(1, abs=1e-5)
