from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mtlweight import GradNorm
from tests.contract.strategies import solve

LENGTHS = torch.diag(torch.tensor([1.0, 2.0, 3.0])).double()


def two_steps(strategy: GradNorm, jacobian: Tensor, before: Tensor, after: Tensor) -> None:
    """Takes a step at the initial losses on equal lengths, which moves nothing, and another."""
    norms = jacobian.norm(dim=1, keepdim=True)
    start = strategy.shares.clone()
    solve(strategy, jacobian / norms, before)
    torch.testing.assert_close(strategy.shares, start)
    solve(strategy, jacobian, after)


def test_canonical_weights() -> None:
    """The vector is for a learning rate of .025 on lengths as they are; their mean is two."""
    strategy = GradNorm(3, learning_rate=0.05)
    before = torch.tensor([2.0, 1.0, 4.0]).double()
    two_steps(strategy, LENGTHS, before, before * torch.tensor([0.5, 1.0, 1.5]))
    assert strategy.initial_losses.tolist() == [2.0, 1.0, 4.0]
    wanted = [0.959016, 0.983607, 1.057377]
    assert (3 * strategy.shares).tolist() == pytest.approx(wanted, abs=1.5e-6)
    strategy.rescale = "tasks"
    _, w = solve(strategy, LENGTHS, before)
    assert w.tolist() == pytest.approx(wanted, abs=1.5e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.12, 1.5])
@pytest.mark.parametrize("seed", range(5))
def test_it_descends_on_its_objective(alpha: float, seed: int) -> None:
    """Against autograd: sum |w n - goal| with the goal held fixed."""
    generator = torch.Generator().manual_seed(seed)
    n, before, after, w = 0.1 + torch.rand(4, 4, generator=generator, dtype=torch.float64)
    strategy = GradNorm(4, alpha=alpha)
    strategy.initial_losses = before.float()
    strategy.shares = (w / w.sum()).float()
    solve(strategy, torch.diag(n), after)
    w = (4 * w / w.sum()).requires_grad_()
    lengths = w * n
    ratios = after / before.float().double()
    goals = (lengths.mean() * (ratios / ratios.mean()) ** alpha).detach()
    (slopes,) = torch.autograd.grad((lengths - goals).abs().sum(), w)
    wanted = w.detach() - 0.025 * slopes / n.mean()
    torch.testing.assert_close(
        strategy.shares.double(), wanted / wanted.sum(), rtol=1e-5, atol=1e-6
    )


def test_it_uses_the_weights_of_before() -> None:
    strategy = GradNorm(3)
    for _ in range(4):
        before = strategy.shares.clone()
        _, w = solve(strategy, LENGTHS, torch.tensor([1.0, 2.0, 3.0]))
        torch.testing.assert_close(w.float(), before)
        assert not torch.equal(strategy.shares, before)
        assert strategy.shares.sum().item() == pytest.approx(1)


def test_equal_lengths_and_rates_stay() -> None:
    strategy = GradNorm(4)
    jacobian = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).double()
    jacobian /= jacobian.norm(dim=1, keepdim=True)
    values = torch.tensor([0.1, 1 / 3, 2.7, 1e5]).double()
    for step in range(5):
        solve(strategy, jacobian, values / (1 + step))
    assert strategy.shares.tolist() == [0.25] * 4


def test_lengths_end_up_equal() -> None:
    strategy = GradNorm(3, alpha=0, learning_rate=0.003)
    for _ in range(500):
        _, w = solve(strategy, LENGTHS)
    lengths = w * torch.tensor([1.0, 2.0, 3.0])
    assert lengths.tolist() == pytest.approx([lengths.mean().item()] * 3, rel=0.02)


def test_a_task_behind_is_pulled() -> None:
    """Another implementation turns the exponent's sign over."""
    strategy = GradNorm(2)
    two_steps(strategy, torch.eye(2).double(), torch.ones(2), torch.tensor([1.0, 0.1]))
    assert strategy.shares[0] > 0.5 > strategy.shares[1]


def test_the_scale_of_all_losses_does_not_matter() -> None:
    shares = []
    for scale in (1e-12, 1.0, 1e12):
        strategy = GradNorm(3)
        for step in range(4):
            values = scale * torch.tensor([1.0, 2.0, 3.0 + step]).double()
            solve(strategy, scale * LENGTHS, values)
        shares.append(strategy.shares)
    torch.testing.assert_close(shares[0], shares[1])
    torch.testing.assert_close(shares[2], shares[1])


def test_weights_stay_positive() -> None:
    strategy = GradNorm(2, learning_rate=5.0)
    for _ in range(5):
        solve(strategy, torch.diag(torch.tensor([1.0, 1e6])).double())
        assert (strategy.shares > 0).all()
        assert strategy.shares.sum().item() == pytest.approx(1)


def test_no_gradient_and_no_loss() -> None:
    strategy = GradNorm(3)
    solve(strategy, 0 * LENGTHS, torch.zeros(3))
    assert strategy.shares.tolist() == pytest.approx([1 / 3] * 3)
    assert strategy.initial_losses.isnan().all()
    solve(strategy, LENGTHS, torch.tensor([0.0, 2.0, 3.0]))
    assert strategy.initial_losses.tolist()[1:] == [2.0, 3.0]
    assert strategy.initial_losses[0].isnan()
    solve(strategy, LENGTHS, torch.tensor([0.0, 0.0, 0.0]))
    assert strategy.shares.isfinite().all()


def test_absent_tasks_stand_still() -> None:
    strategy = GradNorm(3)
    theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    losses = LENGTHS @ theta + 1
    strategy({"0": losses[0], "2": losses[2]}, shared=[theta])
    assert strategy.weights.tolist() == pytest.approx([0.5, 0, 0.5])
    assert strategy.shares[1].item() == pytest.approx(1 / 3)
    assert strategy.shares.sum().item() == pytest.approx(1)
    assert strategy.shares[0] > strategy.shares[2]
    assert strategy.initial_losses[1].isnan()
