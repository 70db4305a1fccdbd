from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mtlweight import PCGrad
from tests.contract.strategies import solve


def slow(jacobian: Tensor, orders: list[list[int]]) -> Tensor:
    """Algorithm 1 on the vectors themselves."""
    total = torch.zeros_like(jacobian[0])
    for i, order in enumerate(orders):
        v = jacobian[i].clone()
        for j in order:
            if j != i and v @ jacobian[j] < 0:
                v = v - (v @ jacobian[j]) / (jacobian[j] @ jacobian[j]) * jacobian[j]
        total += v
    return total


@pytest.mark.parametrize("tasks", [2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(4))
def test_in_the_order_of_the_tasks(tasks: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(tasks, 6, generator=generator, dtype=torch.float64)
    d, _ = solve(PCGrad(tasks, shuffle=False), jacobian)
    torch.testing.assert_close(d, slow(jacobian, [list(range(tasks))] * tasks))


def test_a_gradient_is_never_projected_on_itself() -> None:
    """Two published implementations do so, once others have turned it against its old self."""
    differ = 0
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        jacobian = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        d, _ = solve(PCGrad(4, shuffle=False), jacobian)
        torch.testing.assert_close(d, slow(jacobian, [list(range(4))] * 4))
        itself = torch.zeros_like(d)
        for i in range(4):
            v = jacobian[i].clone()
            for g in jacobian:
                v = v - (v @ g).clamp_max(0) / (g @ g) * g
            itself += v
        differ += int((d - itself).norm() > 1e-3)
    assert differ > 0


@pytest.mark.parametrize("tasks", [2, 3, 8, 40])
def test_the_orders_are_those_of_the_seed(tasks: int) -> None:
    """Task by task, one permutation each: a run can be repeated from its seed and step."""
    strategy = PCGrad(tasks, seed=3)
    for step in range(3):
        generator = torch.Generator().manual_seed(1000 * tasks + step)
        jacobian = torch.randn(tasks, 7, generator=generator, dtype=torch.float64)
        drawn = strategy.generator()
        orders = [torch.randperm(tasks, generator=drawn).tolist() for _ in range(tasks)]
        d, _ = solve(strategy, jacobian)
        torch.testing.assert_close(d, slow(jacobian, orders), rtol=1e-6, atol=1e-6)


def test_shuffled_it_is_one_of_the_orders() -> None:
    import itertools

    jacobian = torch.tensor([[1.0, 0.0], [-0.5, 0.9], [-0.6, -0.7]], dtype=torch.float64)
    orders = [[p for p in itertools.permutations(range(3))] for _ in range(3)]
    possible = torch.stack(
        [slow(jacobian, [list(o) for o in choice]) for choice in itertools.product(*orders)]
    )
    strategy = PCGrad(3)
    for _ in range(20):
        d, _ = solve(strategy, jacobian)
        assert (possible - d).norm(dim=1).min() < 1e-12


@pytest.mark.parametrize("shuffle", [True, False])
def test_without_conflict_it_is_the_sum(shuffle: bool) -> None:
    for jacobian in (torch.eye(4), torch.ones(3, 2), torch.rand(5, 7), torch.zeros(2, 3)):
        d, w = solve(PCGrad(len(jacobian), shuffle=shuffle), jacobian)
        torch.testing.assert_close(d, jacobian.sum(0))
        assert w.tolist() == pytest.approx([1.0] * len(jacobian))


def test_opposites_cancel() -> None:
    g = torch.tensor([1.0, 2.0])
    d, _ = solve(PCGrad(2), torch.stack([g, -g]))
    torch.testing.assert_close(d, torch.zeros(2))
    d, _ = solve(PCGrad(2), torch.stack([g, -3 * g]))
    torch.testing.assert_close(d, torch.zeros(2), rtol=0, atol=1e-6)


def test_a_seed_is_a_sequence() -> None:
    jacobian = torch.tensor([[1.0, 0.0], [-0.5, 0.9], [-0.6, -0.7]], dtype=torch.float64)
    runs = [
        torch.stack([solve(strategy, jacobian)[0] for _ in range(10)])
        for strategy in (PCGrad(3, seed=1), PCGrad(3, seed=1), PCGrad(3, seed=2))
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
