from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mtlweight import VQGAN, OptionError
from tests.contract.strategies import solve


def rows(seed: int, tasks: int = 3, numbers: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, numbers, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_the_others_are_as_long_as_the_main(scale: float) -> None:
    jacobian = scale * rows(0) * torch.tensor([[1.0], [30.0], [0.01]]).double()
    _, w = solve(VQGAN(("rec", "gan", "lpips"), weight=0.8), jacobian)
    lengths = w * jacobian.norm(dim=1)
    main = jacobian[0].norm().item()
    assert w[0] == 1
    assert lengths.tolist() == pytest.approx([main, 0.8 * main, 0.8 * main], rel=1e-6)


def test_the_main_task_by_name() -> None:
    jacobian = rows(1)
    _, w = solve(VQGAN(("gan", "rec", "lpips"), main="rec"), jacobian)
    _, first = solve(VQGAN(("rec", "gan", "lpips")), jacobian[[1, 0, 2]])
    torch.testing.assert_close(w, first[[1, 0, 2]])
    with pytest.raises(OptionError, match=r"'reconstruction'.*gan, rec"):
        VQGAN(("gan", "rec"), main="reconstruction")


def test_the_others_wait() -> None:
    strategy = VQGAN(2, start_step=2)
    seen = [solve(strategy, torch.eye(2).double())[1].tolist() for _ in range(4)]
    assert seen == [[1, 0], [1, 0], [1, 1], [1, 1]]


def test_a_tiny_gradient_is_not_blown_up() -> None:
    _, w = solve(VQGAN(2, weight=0.5), torch.diag(torch.tensor([1.0, 1e-9])).double())
    assert w.tolist() == [1, 5000]


def test_no_gradient() -> None:
    _, w = solve(VQGAN(2, weight=0.5), torch.diag(torch.tensor([1.0, 0.0])).double())
    assert w.tolist() == [1, 0.5]
    _, w = solve(VQGAN(2), torch.diag(torch.tensor([0.0, 1.0])).double())
    assert w.tolist() == [1, 0]
    _, w = solve(VQGAN(2, start_step=1), torch.zeros(2, 2).double())
    assert w.tolist() == [1, 0]


def test_a_step_without_the_main_task() -> None:
    strategy = VQGAN(3, weight=0.5)
    theta = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    jacobian = rows(0)
    strategy({str(i): jacobian[i] @ theta + 1 for i in (1, 2)}, shared=[theta])
    assert strategy.weights.tolist() == [0, 0.5, 0.5]
    strategy({str(i): jacobian[i] @ theta + 1 for i in (0, 2)}, shared=[theta])
    ratio = (jacobian[0].norm() / jacobian[2].norm()).item()
    assert strategy.weights.tolist() == pytest.approx([1, 0, 0.5 * ratio])


@pytest.mark.parametrize("task", range(3))
def test_the_scale_of_one_task_does_not_turn_the_step(task: int) -> None:
    jacobian = rows(3)
    d, _ = solve(VQGAN(3), jacobian)
    jacobian[task] *= 50
    scaled, _ = solve(VQGAN(3), jacobian)
    torch.testing.assert_close(scaled, d if task else 50 * d, rtol=1e-6, atol=1e-6)
