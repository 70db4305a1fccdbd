from __future__ import annotations

import pytest
import torch

from mtlweight import IMTLL, UW
from tests.contract.strategies import solve

LOSSES = torch.tensor([0.2, 1.0, 5.0]).double()
J = torch.eye(3).double()


def test_uw_settles_where_the_variance_is_the_loss() -> None:
    strategy = UW(3)
    for _ in range(600):
        solve(strategy, J, LOSSES)
    torch.testing.assert_close(strategy.weights.double(), 1 / (2 * LOSSES), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(strategy.log_variances.double(), LOSSES.log(), rtol=0, atol=2e-3)


def test_imtl_settles_where_every_loss_is_one() -> None:
    strategy = IMTLL(3)
    for _ in range(600):
        solve(strategy, J, LOSSES)
    torch.testing.assert_close(
        strategy.weights.double() * LOSSES, torch.ones(3).double(), rtol=2e-3, atol=0
    )


@pytest.mark.parametrize(("build", "factor"), [(UW, 0.5), (IMTLL, 1.0)])
def test_settled_they_do_not_see_scales(build: type, factor: float) -> None:
    scale = torch.tensor([1.0, 1.0, 3.0]).double()
    plain, scaled = build(3), build(3)
    for _ in range(700):
        d, _ = solve(plain, J, LOSSES)
        other, _ = solve(scaled, scale[:, None] * J, scale * LOSSES)
    torch.testing.assert_close(d, factor * 1 / LOSSES, rtol=3e-2, atol=0)
    torch.testing.assert_close(other, d, rtol=3e-2, atol=0)


@pytest.mark.parametrize(("build", "sign"), [(UW, 1.0), (IMTLL, -1.0)])
def test_the_inner_optimizer_is_adam(build: type, sign: float) -> None:
    """Step for step the same as torch's, given the same gradient."""
    strategy = build(3, learning_rate=0.05)
    s = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([s], 0.05)
    for step in range(30):
        losses = LOSSES.float() * (1 + 0.3 * torch.sin(torch.tensor([1.0, 2.0, 3.0]) * step))
        wanted = (-s).exp() / 2 if build is UW else s.exp()
        _, w = solve(strategy, torch.eye(3), losses)
        torch.testing.assert_close(w, wanted.detach(), rtol=1e-4, atol=1e-6)
        total = ((-s).exp() * losses + s).sum() / 2 if build is UW else (s.exp() * losses - s).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()


def test_an_absent_task_stands_still_with_its_moments() -> None:
    strategy = UW(2)
    theta = torch.ones(2, requires_grad=True)
    for _ in range(5):
        strategy([theta[0] * 3, theta[1] * 3])
    before = strategy.log_variances[1].item()
    for _ in range(5):
        strategy({"0": theta[0] * 3})
    assert strategy.log_variances[1].item() == before
    assert strategy.log_variances[0].item() != before


@pytest.mark.parametrize("build", [UW, IMTLL])
def test_losses_at_or_below_zero_do_not_run_away(build: type) -> None:
    strategy = build(2, learning_rate=1.0)
    for _ in range(200):
        _d, w = solve(strategy, torch.eye(2), [-1.0, 0.0])
    assert w.isfinite().all()
    assert w.max() <= 22027  # e^10
    for _ in range(200):
        _, w = solve(strategy, torch.eye(2), [1.0, 1.0])
    assert w.tolist() == pytest.approx([0.5 if build is UW else 1.0] * 2, rel=0.1)


def test_initial() -> None:
    assert UW(2, initial=-0.5).weights.tolist() == pytest.approx([0.824361] * 2)
    assert IMTLL(2, initial=0.5).weights.tolist() == pytest.approx([1.648721] * 2)
