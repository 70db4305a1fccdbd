from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mtlweight import GradVac, PCGrad
from tests.contract.strategies import solve

J3 = torch.tensor([[3, 1, 0, 0], [-1, 2, 1, 0], [0, -1, 2, 2]], dtype=torch.float64)
J2 = torch.tensor([[1, 0], [-1, 1]], dtype=torch.float64)


def rows(seed: int, tasks: int = 3, numbers: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, numbers, generator=generator, dtype=torch.float64)


class Slow:
    """The rule on the vectors themselves, in the order of the tasks."""

    def __init__(self, tasks: int, beta: float) -> None:
        self.beta = beta
        self.targets = torch.zeros(tasks, tasks, dtype=torch.float64)

    def step(self, jacobian: Tensor, present: list[int]) -> Tensor:
        total = torch.zeros_like(jacobian[0])
        for i in present:
            v = jacobian[i].clone()
            for j in present:
                if j == i:
                    continue
                g = jacobian[j]
                phi, target = v @ g / (v.norm() * g.norm()), self.targets[i, j].clone()
                if phi < target:
                    root = (1 - target**2).sqrt()
                    factor = target * (1 - phi**2).sqrt() - phi * root
                    v = v + v.norm() * factor / (g.norm() * root) * g
                self.targets[i, j] = (1 - self.beta) * target + self.beta * phi
            total += v
        return total


@pytest.mark.parametrize("beta", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("tasks", [2, 3, 8])
def test_in_the_order_of_the_tasks(tasks: int, beta: float) -> None:
    strategy, slow = GradVac(tasks, beta=beta, shuffle=False), Slow(tasks, beta)
    for step in range(6):
        present = [i for i in range(tasks) if step % 3 < 2 or i != tasks // 2]
        jacobian = rows(step, tasks, 12)
        theta = torch.zeros(12, dtype=torch.float64, requires_grad=True)
        strategy({str(i): jacobian[i] @ theta + 1 for i in present}, shared=[theta]).backward()
        assert theta.grad is not None
        wanted = slow.step(jacobian, present)
        torch.testing.assert_close(theta.grad, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(strategy.targets.double(), slow.targets, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_first_step_is_pcgrad(seed: int, shuffle: bool) -> None:
    for jacobian in (J3, J2, rows(seed, 7, 4)):
        tasks = len(jacobian)
        d, w = solve(GradVac(tasks, seed=seed, shuffle=shuffle), jacobian)
        wanted, weights = solve(PCGrad(tasks, seed=seed, shuffle=shuffle), jacobian)
        torch.testing.assert_close(d, wanted)
        torch.testing.assert_close(w, weights)


def test_a_corrected_pair_has_its_target_for_cosine() -> None:
    strategy = GradVac(2, beta=1.0)
    solve(strategy, torch.tensor([[1.0, 0.0], [0.8, 0.6]]).double())
    assert strategy.targets.tolist() == [[0.0, pytest.approx(0.8)], [pytest.approx(0.8), 0.0]]
    jacobian = torch.tensor([[2.0, 0.0], [0.0, 3.0]]).double()
    d, w = solve(strategy, jacobian)
    # tan of the angle with cosine .8 is 3/4: v_1 = (2, 8/3), v_2 = (4, 3)
    assert d.tolist() == pytest.approx([6, 17 / 3])
    assert w.tolist() == pytest.approx([3, 17 / 9])


def test_a_target_also_rises_by_pairs_that_need_no_correction() -> None:
    """A published implementation moves targets only when it corrects, so that they never rise."""
    strategy = GradVac(2, beta=0.5)
    for wanted in (0.3, 0.45):
        solve(strategy, torch.tensor([[1.0, 0.0], [0.6, 0.8]]).double())
        assert strategy.targets[0, 1].item() == pytest.approx(wanted)


def test_tasks_that_are_always_equal_do_not_break_it() -> None:
    strategy = GradVac(2)
    same = torch.tensor([[1.0, 2.0], [1.0, 2.0]]).double()
    for _ in range(40):
        d, _ = solve(strategy, same)
        torch.testing.assert_close(d, 2 * same[0])
    assert strategy.targets.max() < 1
    d, w = solve(strategy, J2)
    assert d.isfinite().all()
    assert w.max() < 100


def test_opposites_cancel_and_move_no_other_target() -> None:
    strategy = GradVac(3, shuffle=False)
    jacobian = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.6, 0.8]]).double()
    solve(strategy, jacobian)
    assert strategy.targets[0].tolist() == [0, -0.5, 0]


def test_a_task_without_gradient() -> None:
    strategy = GradVac(3)
    d, w = solve(strategy, torch.cat([J2, torch.zeros(1, 2).double()]))
    assert d.tolist() == pytest.approx([0.5, 1.5])
    assert w[2] == 1
    assert not strategy.targets[2].any()
    assert not strategy.targets[:, 2].any()
