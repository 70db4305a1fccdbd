from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mtlweight import DBMTL, AvgNorm
from tests.contract.strategies import solve


def jacobian(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(3, 5, generator=generator, dtype=torch.float64)


class SlowDBMTL:
    """Algorithm 1, task by task, in plain arithmetic."""

    def __init__(self, beta: float, sigma: float) -> None:
        self.beta, self.sigma = beta, sigma
        self.average = [torch.zeros(5, dtype=torch.float64) for _ in range(3)]
        self.k = 0

    def step(self, rows: Tensor, losses: list[float], present: list[int]) -> Tensor:
        self.k += 1
        beta = self.beta / self.k**self.sigma
        for i in present:
            h = rows[i] / (losses[i] + 1e-8)
            self.average[i] = beta * self.average[i] + (1 - beta) * h
        alpha = max(float(self.average[i].norm()) for i in present)
        total = torch.zeros(5, dtype=torch.float64)
        for i in present:
            total += alpha * self.average[i] / (self.average[i].norm() + 1e-8 * alpha)
        return total


@pytest.mark.parametrize(("beta", "sigma"), [(0.5, 0.5), (0.9, 0.0), (0.1, 1.0), (0.0, 0.0)])
def test_db_mtl_is_its_algorithm(beta: float, sigma: float) -> None:
    strategy, slow = DBMTL(3, beta=beta, beta_sigma=sigma), SlowDBMTL(beta, sigma)
    for step in range(8):
        present = [[0, 1, 2], [0, 1, 2], [0, 2], [1]][step % 4]
        losses = [1.0 + step, 0.3, 2.0 / (1 + step)]
        rows = jacobian(step)
        theta = torch.zeros(5, dtype=torch.float64, requires_grad=True)
        given = {str(i): rows[i] @ theta + losses[i] for i in present}
        strategy(given, shared=[theta]).backward()
        assert theta.grad is not None
        torch.testing.assert_close(
            theta.grad, slow.step(rows, losses, present), rtol=1e-6, atol=1e-7
        )


def test_db_mtl_weighs_all_gradients_as_long_as_the_longest() -> None:
    strategy = DBMTL(3, beta=0)
    values = torch.tensor([1.0, 2.0, 3.0]).double()
    rows = jacobian(0)
    _, w = solve(strategy, rows, values)
    lengths = w * rows.norm(dim=1)
    longest = (rows.norm(dim=1) / values).max().item()
    assert lengths.tolist() == pytest.approx([longest] * 3, rel=1e-5)


def test_db_mtl_with_a_zero_row() -> None:
    rows = jacobian(0)
    rows[1] = 0
    d, w = solve(DBMTL(3, beta=0), rows)
    wanted, _ = solve(DBMTL(2, beta=0), rows[[0, 2]])
    torch.testing.assert_close(d, wanted)
    assert w.isfinite().all()


def test_db_mtl_refuses_a_shared_part_that_shrinks() -> None:
    strategy = DBMTL(3)
    solve(strategy, jacobian(0))
    with pytest.raises(ValueError, match="5"):
        solve(strategy, jacobian(0)[:, :4])


SCALES: dict[str, Any] = {
    "sum_norm": lambda j: j.sum(0).norm(),
    "mean_norm": lambda j: j.mean(0).norm(),
    "mean_of_norms": lambda j: j.norm(dim=1).mean(),
    "max_norm": lambda j: j.norm(dim=1).max(),
    "one": lambda j: torch.tensor(1.0).double(),
}


@pytest.mark.parametrize("scale", SCALES)
def test_avg_norm(scale: Any) -> None:
    rows = jacobian(3)
    d, w = solve(AvgNorm(3, scale=scale), rows)
    length = SCALES[scale](rows)
    torch.testing.assert_close(w, length / rows.norm(dim=1), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        d, (length * rows / rows.norm(dim=1, keepdim=True)).sum(0), rtol=1e-6, atol=1e-7
    )


def test_avg_norm_of_a_task_without_gradient() -> None:
    rows = jacobian(3)
    rows[1] = 0
    _, w = solve(AvgNorm(3), rows)
    assert w[1].item() == pytest.approx(((w[0] + w[2]) / 2).item())
    _, w = solve(AvgNorm(3), 0 * rows)
    assert w.isfinite().all()


def test_avg_norm_on_the_last_shared_layer() -> None:
    """Norms of one layer, weights for the whole network: as the paper has it."""
    first = torch.nn.Linear(4, 5).double()
    last = torch.nn.Linear(5, 5).double()
    heads = [torch.nn.Linear(5, 1).double() for _ in range(3)]
    x = torch.randn(6, 4, dtype=torch.float64)
    features = last(first(x).tanh())
    losses = [(1 + i) * head(features).square().mean() for i, head in enumerate(heads)]
    rows = torch.stack(
        [
            torch.cat(
                [
                    g.reshape(-1)
                    for g in torch.autograd.grad(loss, list(last.parameters()), retain_graph=True)
                ]
            )
            for loss in losses
        ]
    )
    below = [torch.autograd.grad(loss, first.weight, retain_graph=True)[0] for loss in losses]
    strategy = AvgNorm(3)
    strategy(losses, shared=last.parameters()).backward()
    w = rows.sum(0).norm() / rows.norm(dim=1)
    torch.testing.assert_close(strategy.weights.double(), w, rtol=1e-6, atol=0)
    wanted = sum((weight * g for weight, g in zip(w, below, strict=True)), torch.zeros(5, 4))
    assert first.weight.grad is not None
    torch.testing.assert_close(first.weight.grad, wanted.double(), rtol=1e-6, atol=1e-8)
