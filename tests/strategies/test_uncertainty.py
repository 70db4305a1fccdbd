from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mtlweight import IMTLL, UW, UWO, UWSO, RevisedUW, ScaleInvariant
from mtlweight.options import options_of
from tests.contract.strategies import plane, solve

LOSSES = torch.tensor([0.2, 1.0, 5.0]).double()
J = torch.eye(3).double()
LEARNED = [UW, IMTLL, RevisedUW]

# What each learns by, and its weights.
SCALARS: dict[Any, Any] = {
    UW: lambda s, losses: ((-s).exp() * losses + s).sum() / 2,
    IMTLL: lambda s, losses: (s.exp() * losses - s).sum(),
    RevisedUW: lambda s, losses: ((-s).exp() * losses / 2 + F.softplus(s)).sum(),
}
WEIGHTS: dict[Any, Any] = {
    UW: lambda s: (-s).exp() / 2,
    IMTLL: lambda s: s.exp(),
    RevisedUW: lambda s: (-s).exp() / 2,
}


def optimum(build: Any, losses: Tensor) -> Tensor:
    """Returns the weights at which it settles."""
    if build is RevisedUW:
        return 2 / (losses + (losses**2 + 8 * losses).sqrt())
    return 1 / losses if build is IMTLL else 1 / (2 * losses)


@pytest.mark.parametrize("build", LEARNED)
def test_where_they_settle(build: Any) -> None:
    """What is learned is the logarithm of a variance, or of a scale."""
    strategy = build(3, learning_rate=0.1)
    for _ in range(200):
        solve(strategy, J, LOSSES)
    wanted = optimum(build, LOSSES)
    torch.testing.assert_close(strategy.weights.double(), wanted, rtol=2e-3, atol=1e-4)
    s = {
        UW: LOSSES.log(),
        IMTLL: -LOSSES.log(),
        RevisedUW: ((LOSSES + (LOSSES**2 + 8 * LOSSES).sqrt()) / 4).log(),
    }[build]
    torch.testing.assert_close(getattr(strategy, strategy.learned).double(), s, rtol=0, atol=2e-3)


@pytest.mark.parametrize("build", LEARNED)
def test_at_the_optimum_nothing_moves(build: Any) -> None:
    """The derivative by s is zero there: (1 - L e^-s) / 2 at s = log L, and e^s L - 1 at -log L."""
    strategy = build(1)
    s = {UW: 3.0, IMTLL: -3.0, RevisedUW: 3.0}[build]
    loss = torch.tensor(3.0).double().exp()
    if build is RevisedUW:  # e^-s L / 2 = e^s / (1 + e^s)
        loss = 2 * loss.square() / (1 + loss)
    name = strategy.learned
    setattr(strategy, name, torch.full((1,), s))
    solve(strategy, J[:1, :1], loss.reshape(1))
    assert strategy.adam.first.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("build", "factor"), [(UW, 0.5), (IMTLL, 1.0)])
def test_settled_they_do_not_see_scales(build: Any, factor: float) -> None:
    scale = torch.tensor([1.0, 1.0, 3.0]).double()
    plain, scaled = build(3, learning_rate=0.1), build(3, learning_rate=0.1)
    for _ in range(250):
        d, _ = solve(plain, J, LOSSES)
        other, _ = solve(scaled, scale[:, None] * J, scale * LOSSES)
    torch.testing.assert_close(d, factor * 1 / LOSSES, rtol=3e-2, atol=0)
    torch.testing.assert_close(other, d, rtol=3e-2, atol=0)


@pytest.mark.parametrize("build", LEARNED)
def test_the_inner_optimizer_is_adam(build: Any) -> None:
    """Step for step the same as torch's, given the same gradient."""
    strategy = build(3, learning_rate=0.05)
    s = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([s], 0.05)
    for step in range(30):
        losses = LOSSES.float() * (1 + 0.3 * torch.sin(torch.tensor([1.0, 2.0, 3.0]) * step))
        wanted = WEIGHTS[build](s)
        total = SCALARS[build](s, losses)
        _, given_losses = plane(torch.eye(3), losses)
        assert strategy(given_losses).item() == pytest.approx(total.item(), rel=1e-4, abs=1e-5)
        torch.testing.assert_close(strategy.weights, wanted.detach(), rtol=1e-4, atol=1e-6)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()


@pytest.mark.parametrize("build", LEARNED)
def test_an_absent_task_stands_still_with_its_moments(build: Any) -> None:
    strategy = build(2)
    theta = torch.ones(2, requires_grad=True)
    for _ in range(5):
        strategy([theta[0] * 3, theta[1] * 3])
    before = getattr(strategy, strategy.learned)[1].item()
    for _ in range(5):
        strategy({"0": theta[0] * 3})
    after = getattr(strategy, strategy.learned)
    assert after[1].item() == before
    assert after[0].item() != before


@pytest.mark.parametrize("build", LEARNED)
def test_losses_at_or_below_zero_do_not_run_away(build: Any) -> None:
    strategy = build(2, learning_rate=1.0)
    for _ in range(200):
        _d, w = solve(strategy, torch.eye(2), [-1.0, 0.0])
    assert w.isfinite().all()
    assert w.max() <= 22027  # e^10
    for _ in range(200):
        _, w = solve(strategy, torch.eye(2), [1.0, 1.0])
    wanted = optimum(build, torch.ones(2).double())
    torch.testing.assert_close(w.double(), wanted, rtol=0.1, atol=0)


def test_initial() -> None:
    assert UW(2, initial=-0.5).weights.tolist() == pytest.approx([0.824361] * 2)
    assert IMTLL(2, initial=0.5).weights.tolist() == pytest.approx([1.648721] * 2)
    assert RevisedUW(2).weights.tolist() == [0.5, 0.5]  # c = 1
    assert RevisedUW(2, initial=-0.5).weights.tolist() == pytest.approx([0.824361] * 2)


@pytest.mark.parametrize(
    ("build", "buffer"),
    [(UW, "log_variances"), (IMTLL, "log_scales"), (RevisedUW, "log_variances")],
)
def test_their_options_and_state_have_the_same_names(build: Any, buffer: str) -> None:
    """What a saved state and a settings file hold."""
    assert set(options_of(build).model_fields) == {"learning_rate", "initial", "rescale", "check"}
    buffers = [name for name, value in build(2).state_dict().items() if isinstance(value, Tensor)]
    assert buffers == [
        "weights",
        buffer,
        "epoch_weights.sums",
        "epoch_weights.lost",
        "epoch_weights.counts",
        "adam.first",
        "adam.second",
        "adam.counts",
    ]


@settings(max_examples=25)
@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=2), st.floats(-8, 8))
def test_revised_uw_is_never_below_zero(losses: list[float], initial: float) -> None:
    strategy = RevisedUW(2, initial=initial)
    for _ in range(3):
        _, given_losses = plane(torch.eye(2).double(), losses)
        assert strategy(given_losses).item() >= 0


# --- the weights that they would learn, at once --------------------------------------------------

JACOBIAN = torch.tensor([[3, 1, 0, 0], [-1, 2, 1, 0], [0, -1, 2, 2]], dtype=torch.float64)
VALUES = torch.tensor([2.0, 0.5, 1.0]).double()


def test_uw_o() -> None:
    theta, losses = plane(JACOBIAN, VALUES)
    strategy = UWO(3)
    total = strategy(losses)
    total.backward()
    assert strategy.weights.tolist() == pytest.approx([0.5, 2.0, 1.0])
    assert total.item() == pytest.approx(3)  # T, whatever the losses
    assert theta.grad is not None
    assert theta.grad.tolist() == pytest.approx([-0.5, 3.5, 4.0, 2.0])


@settings(max_examples=25)
@given(st.lists(st.floats(0, 1e6), min_size=3, max_size=3))
def test_uw_o_has_the_gradient_of_the_logarithms(values: list[float]) -> None:
    losses = torch.tensor(values).double()
    d, w = solve(UWO(3), JACOBIAN, losses)
    wanted, weights = solve(ScaleInvariant(3), JACOBIAN, losses)
    torch.testing.assert_close(d, wanted, rtol=1e-9, atol=0)
    torch.testing.assert_close(w, weights, rtol=1e-6, atol=0)


def test_uw_o_is_where_uw_settles() -> None:
    learned = UW(3, rescale="one", learning_rate=0.1)
    for _ in range(200):
        solve(learned, J, LOSSES)
    _, w = solve(UWO(3, rescale="one"), J, LOSSES)
    torch.testing.assert_close(learned.weights.double(), w, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("temperature", "wanted"),
    [(1.0, (0.140244, 0.628532, 0.231224)), (5.0, (0.289433, 0.390694, 0.319873))],
)
def test_uw_so(temperature: float, wanted: tuple[float, ...]) -> None:
    theta, losses = plane(JACOBIAN, VALUES)
    strategy = UWSO(3, temperature=temperature)
    strategy(losses).backward()
    assert strategy.weights.tolist() == pytest.approx(wanted, abs=1.5e-6)
    assert theta.grad is not None
    torch.testing.assert_close(
        theta.grad, torch.tensor(wanted).double() @ JACOBIAN, rtol=0, atol=5e-6
    )


def test_uw_so_of_small_losses() -> None:
    """An inverse beyond any exponential; one loss at zero; all at zero."""
    least = torch.tensor(-10.0).exp().item()
    _, w = solve(UWSO(3), J, [1e-6, 1.0, 1.0])
    assert w.tolist() == pytest.approx([1.0, least, least], rel=1e-3)
    _, w = solve(UWSO(3), J, [0.0, 0.5, 1.0])
    torch.testing.assert_close(w.float(), torch.tensor([0.0, 2.0, 1.0]).softmax(0))
    _, w = solve(UWSO(3), J, [0.0, 0.0, 0.0])
    assert w.tolist() == pytest.approx([1 / 3] * 3)
    _, w = solve(UWSO(3, temperature=1e-12), J, [1e-29, 1e-28, 1e-28])
    assert w.tolist() == pytest.approx([1.0, least, least], rel=1e-3)


@pytest.mark.parametrize("build", [UWO, UWSO])
def test_a_part_of_the_tasks_and_a_negative_loss(build: Any) -> None:
    _, losses = plane(JACOBIAN, VALUES)
    strategy = build(["a", "b", "c"])
    strategy({"a": losses[0], "b": losses[1]})
    two = torch.tensor([0.5, 2.0])
    wanted = two if build is UWO else two.softmax(0)
    assert strategy.weights.tolist() == pytest.approx([*wanted.tolist(), 0.0])
    with pytest.raises(ValueError, match=r"'c' is -1\.0"):
        solve(strategy, J, [1.0, 1.0, -1.0])


def test_one_task_is_plain_training() -> None:
    _, w = solve(UWO(1), J[:1], [4.0])
    assert w.tolist() == pytest.approx([0.25])
    _, w = solve(UWSO(1), J[:1], [4.0])
    assert w.tolist() == pytest.approx([1.0])
