from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlweight import BMTL, STCH, GroupDRO, OptionError, Strategy, Tchebycheff
from tests.contract.strategies import plane, solve

J = torch.eye(3).double()
LOSSES = torch.tensor([2.0, 0.5, 1.0]).double()


def step(strategy: Strategy, values: Any) -> Tensor:
    return solve(strategy, J, values)[1]


# --- group DRO -----------------------------------------------------------------------------------


def test_group_dro_is_the_softmax_of_what_the_losses_were() -> None:
    strategy = GroupDRO(3, step_size=0.1)
    total = torch.zeros(3).double()
    first = torch.tensor([4.0, 1.0, 2.0]).double()
    for k in range(5):
        values = first * (1 - 0.1 * k * torch.tensor([1.0, 0.0, 2.0]).double())
        total += values / first
        torch.testing.assert_close(
            step(strategy, values), (0.1 * total).softmax(0), rtol=1e-5, atol=1e-7
        )


def test_group_dro_of_one_scale_by_hand() -> None:
    """With first losses of one it is the paper's rule: q = exp(.01 L) / sum."""
    strategy = GroupDRO(3)
    torch.testing.assert_close(step(strategy, [1.0, 1.0, 1.0]), torch.full((3,), 1 / 3).double())
    w = step(strategy, LOSSES)
    wanted = (0.01 * LOSSES).exp() / (0.01 * LOSSES).exp().sum()
    torch.testing.assert_close(w, wanted, rtol=1e-6, atol=0)
    assert w[0] > w[2] > w[1]


@settings(max_examples=40)
@given(
    st.lists(
        st.lists(st.floats(-5, 5), min_size=3, max_size=3),
        min_size=1,
        max_size=5,
    )
)
def test_group_dro_stays_on_the_simplex_and_the_largest_gains(losses: list[list[float]]) -> None:
    strategy = GroupDRO(3, step_size=0.5)
    step(strategy, [1.0, 1.0, 1.0])
    old = strategy.weights
    for values in losses:
        step(strategy, values)
        w = strategy.weights
        assert (w >= 0).all()
        assert w.sum() == pytest.approx(1, abs=1e-6)
        largest = max(range(3), key=values.__getitem__)
        assert w[largest] >= old[largest] - 1e-6
        old = w


def test_group_dro_does_not_see_scales() -> None:
    scale = torch.tensor([1.0, 1e5, 1e-4]).double()
    plain, scaled = GroupDRO(3), GroupDRO(3)
    for values in ([1.0, 2.0, 3.0], [2.0, 1.0, 3.0], [0.1, 9.0, 2.0]):
        torch.testing.assert_close(
            step(scaled, scale * torch.tensor(values).double()),
            step(plain, values),
            rtol=1e-5,
            atol=1e-7,
        )


def test_group_dro_with_references() -> None:
    strategy = GroupDRO(3, step_size=1.0, references=[1.0, 0.5, 3.0])
    w = step(strategy, [2.0, 1.0, 2.0])  # excess 1, .5 and none, over 2, 1 and 2
    torch.testing.assert_close(w, torch.tensor([0.5, 0.5, 0.0]).double().softmax(0))
    with pytest.raises(OptionError, match="'b'"):
        GroupDRO(["a", "b"], references={"a": 1.0})


def test_group_dro_absent_tasks_keep_their_share() -> None:
    strategy = GroupDRO(3, step_size=1.0)
    step(strategy, [1.0, 1.0, 1.0])
    theta = torch.ones((), requires_grad=True)
    for _ in range(5):
        strategy({"0": theta * 3.0, "2": theta * 1.0})
        assert strategy.weights.sum() == pytest.approx(1)
    shares = strategy.log_shares.exp()
    assert shares[1] == pytest.approx(1 / 3, rel=1e-6)
    assert shares.sum() == pytest.approx(1, rel=1e-5)
    assert shares[0] > 0.6


def test_group_dro_recovers_from_a_spike_and_from_a_share_of_nothing() -> None:
    strategy = GroupDRO(3)
    step(strategy, [1.0, 1.0, 1.0])
    step(strategy, [1e18, 1.0, 1.0])
    assert strategy.weights[0] < 0.36
    fierce = GroupDRO(3, step_size=50.0)
    step(fierce, [1.0, 1.0, 1.0])
    for _ in range(3):
        step(fierce, [5.0, 1.0, 1.0])
    assert fierce.weights[1] == 0  # e^-600
    for _ in range(4):
        step(fierce, [1.0, 5.0, 1.0])
    assert fierce.weights[1] > 0.99


def test_group_dro_first_losses_of_zero() -> None:
    strategy = GroupDRO(3)
    assert step(strategy, [0.0, 1.0, 1.0]).isfinite().all()
    step(strategy, [7.0, 1.0, 1.0])
    assert strategy.first_losses.tolist() == [7, 1, 1]


# --- Tchebycheff ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "losses", "wanted"),
    [
        ({}, [2.0, 0.5, 1.0], [1, 0, 0]),
        ({}, [2.0, 0.5, 2.0], [0.5, 0, 0.5]),
        ({}, [2.0, 2.0, 2.0], [1 / 3, 1 / 3, 1 / 3]),
        ({"preferences": [1.0, 5.0, 1.0]}, [2.0, 0.5, 1.0], [0, 5, 0]),
        ({"preferences": [1.0, 4.0, 1.0]}, [2.0, 0.5, 1.0], [0.5, 2, 0]),
        ({"ideals": [1.5, 0.0, 0.0]}, [2.0, 0.5, 1.0], [0, 0, 1]),
        ({}, [-1.0, -2.0, -3.0], [1, 0, 0]),
        ({}, [0.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_tchebycheff(options: Any, losses: list[float], wanted: list[float]) -> None:
    strategy = Tchebycheff(3, **options)
    assert step(strategy, losses).tolist() == pytest.approx(wanted)


def test_tchebycheff_is_worth_the_maximum() -> None:
    strategy = Tchebycheff(3, preferences=[1.0, 8.0, 1.0], ideals=[0.0, 0.25, 0.0])
    assert strategy(plane(J, LOSSES)[1]).item() == 2.0
    assert strategy(plane(J, [1.0, 0.5, 1.0])[1]).item() == 2.0


@pytest.mark.parametrize("bad", [[1.0, 0.0, 1.0], [1.0, -1.0, 1.0], [1.0, 2.0]])
def test_tchebycheff_refuses(bad: list[float]) -> None:
    with pytest.raises(OptionError, match="preference"):
        Tchebycheff(3, preferences=bad)


# --- STCH ----------------------------------------------------------------------------------------


def warmed(nadir: Any, **options: Any) -> STCH:
    strategy = STCH(3, warmup=0, **options)
    step(strategy, nadir)
    strategy.end_epoch()
    return strategy


def test_stch_by_hand() -> None:
    strategy = warmed([2.0, 2.0, 2.0], mu=0.5)
    total = strategy(plane(J, LOSSES)[1])
    wanted = torch.tensor([1.142857, 0.285714, 0.571429])
    torch.testing.assert_close(strategy.weights, wanted, rtol=0, atol=1e-6)
    softmax = strategy.weights.double() * LOSSES / 3
    torch.testing.assert_close(
        softmax, torch.tensor([0.761905, 0.047619, 0.190476]).double(), rtol=0, atol=1e-6
    )
    f = (LOSSES / 2).log()
    assert total.item() == pytest.approx((3 * 0.5 * (f / 0.5).exp().sum().log()).item(), rel=1e-6)


def test_stch_warms_up_with_logarithms_for_five_epochs() -> None:
    strategy = STCH(3)
    for epoch in range(5):
        for factor in (0.5, 1.5):
            w = step(strategy, factor * LOSSES * (5 - epoch))
            torch.testing.assert_close(w, 1 / (factor * LOSSES * (5 - epoch)), rtol=1e-6, atol=0)
        strategy.end_epoch()
    torch.testing.assert_close(strategy.nadirs.double(), LOSSES)  # the mean of epoch 4
    w = step(strategy, LOSSES * torch.tensor([1.0, 0.5, 0.25]).double())
    f = torch.tensor([1.0, 0.5, 0.25]).double()
    torch.testing.assert_close(w, 3 * f / f.sum() / (LOSSES * f), rtol=1e-6, atol=0)
    strategy.end_epoch()
    torch.testing.assert_close(strategy.nadirs.double(), LOSSES)  # and stays


def test_stch_in_step_is_the_logarithm() -> None:
    strategy = warmed([4.0, 1.0, 2.0], mu=0.3)
    for factor in (1.0, 0.1, 3.0):
        values = factor * torch.tensor([4.0, 1.0, 2.0]).double()
        torch.testing.assert_close(step(strategy, values), 1 / values, rtol=1e-5, atol=0)


def test_stch_of_a_small_and_of_a_unit_mu() -> None:
    strategy = warmed([1.0, 1.0, 1.0], mu=1e-3)
    assert step(strategy, LOSSES).tolist() == pytest.approx([3 / 2, 0, 0])
    total = warmed([2.0, 1.0, 4.0], mu=1.0)(plane(J, LOSSES)[1])
    assert total.item() == pytest.approx(
        (3 * (LOSSES / torch.tensor([2, 1, 4])).sum().log()).item()
    )


def test_stch_does_not_see_scales() -> None:
    scale = torch.tensor([1.0, 1e4, 1e-3]).double()
    for warm in (False, True):
        plain = warmed([1.0, 2.0, 3.0], mu=0.5) if warm else STCH(3)
        other = warmed(scale * torch.tensor([1.0, 2.0, 3.0]), mu=0.5) if warm else STCH(3)
        d, _ = solve(plain, J, LOSSES)
        scaled, _ = solve(other, scale[:, None] * J, scale * LOSSES)
        torch.testing.assert_close(scaled, d, rtol=1e-5, atol=1e-7)


def test_stch_of_torchjd() -> None:
    """Theirs of the logarithms, times T."""
    scalarization = pytest.importorskip("torchjd.scalarization")
    generator = torch.Generator().manual_seed(0)
    for mu in (0.1, 0.5, 1.0, 3.0):
        nadir = 0.5 + torch.rand(3, generator=generator).double()
        strategy = warmed(nadir, mu=mu)
        peer = scalarization.STCH(mu, weights=torch.ones(3).double())
        for _ in range(3):
            leaf = (0.1 + torch.rand(3, generator=generator).double()).requires_grad_()
            total = 3 * peer((leaf / nadir).log())
            total.backward()
            ours = strategy(plane(J, leaf.detach())[1])
            assert ours.item() == pytest.approx(total.item(), rel=1e-5, abs=1e-6)
            torch.testing.assert_close(strategy.weights.double(), leaf.grad, rtol=1e-5, atol=1e-6)


def test_stch_of_a_task_that_the_warm_up_did_not_see() -> None:
    strategy = STCH(3, warmup=0)
    theta = torch.ones((), requires_grad=True)
    strategy({"0": theta * 4.0, "1": theta * 2.0})
    strategy.end_epoch()
    assert strategy.nadirs.tolist() == [4, 2, 0]
    # As if it were at its nadir, until the end of the first epoch that has it.
    w = step(strategy, [4.0, 2.0, 5.0])
    torch.testing.assert_close(w, 1 / torch.tensor([4.0, 2.0, 5.0]).double(), rtol=1e-6, atol=0)
    step(strategy, [4.0, 2.0, 3.0])
    strategy.end_epoch()
    assert strategy.nadirs.tolist() == [4, 2, 4]


def test_stch_without_a_step_in_the_warm_up() -> None:
    """A peer divides zero by zero here."""
    strategy = STCH(3, warmup=0)
    strategy.end_epoch()
    strategy.end_epoch()
    torch.testing.assert_close(step(strategy, LOSSES), 1 / LOSSES, rtol=1e-6, atol=0)


@pytest.mark.parametrize("mu", [0.1, 1.0, 5.0])
def test_stch_of_a_loss_of_zero(mu: float) -> None:
    for strategy in (STCH(3), warmed([1.0, 1.0, 1.0], mu=mu), warmed([0.0, 1.0, 1.0], mu=mu)):
        w = step(strategy, [0.0, 0.5, 1.0])
        assert w.isfinite().all()
        assert w[0] == 0
        assert (w[1:] > 0).all()
        assert step(strategy, [0.0, 0.0, 0.0]).isfinite().all()


# --- BMTL ----------------------------------------------------------------------------------------


def test_bmtl_is_the_sum_of_exponentials() -> None:
    strategy = BMTL(3, temperature=2.0)
    total = strategy(plane(J, LOSSES)[1])
    assert total.item() == pytest.approx((LOSSES / 2).exp().sum().item())
    torch.testing.assert_close(strategy.weights.double(), (LOSSES / 2).exp() / 2)
    torch.testing.assert_close(step(BMTL(3), LOSSES), (LOSSES / 50).exp() / 50)


def test_bmtl_goes_on_as_its_tangent() -> None:
    strategy = BMTL(3, temperature=2.0)
    total = strategy(plane(J, [20.0, 24.0, 1e15])[1])
    top = torch.tensor(10.0).double().exp().item()
    assert strategy.weights.tolist() == pytest.approx([top / 2] * 3, rel=1e-5)
    assert total.item() == pytest.approx(top * (1 + 3 + (1e15 / 2 - 9)), rel=1e-6)
    assert step(strategy, [-1e9, 1.0, 2.0])[0] == 0


def test_bmtl_attends_more_to_the_larger() -> None:
    assert (step(BMTL(3), [3.0, 2.0, 1.0]).diff() < 0).all()
