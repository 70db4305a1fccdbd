"""The code in the documentation runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import mtlweight

ROOT = Path(__file__).parents[1]
TASKS = ("seg", "depth", "normal")


def blocks(path: str, containing: str) -> str:
    """Returns the only Python block of a page that contains a text."""
    found = re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)
    (block,) = [code for code in found if containing in code]
    return block


class Batch(NamedTuple):
    x: Tensor
    tasks: Tensor


class Points(Dataset[Batch]):
    def __getitem__(self, key: int) -> Batch:
        return Batch(torch.tensor([float(key), 1.0]), torch.tensor(key % 3))

    def __len__(self) -> int:
        return 30


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
@pytest.mark.parametrize("name", ["DWA", "GLS", "PCGrad", "DBMTL", "UW"])
def test_the_loop(page: str, name: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 3)
    start = model.weight.detach().clone()

    def compute_losses(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        return dict(zip(TASKS, model(batch).square().mean(0), strict=True))

    scope: dict[str, Any] = {
        "mtlweight": mtlweight,
        "epochs": 3,
        "loader": [torch.randn(4, 2) for _ in range(3)],
        "model": model,
        "compute_losses": compute_losses,
        "optimizer": torch.optim.SGD(model.parameters(), 0.01),
        "validate": lambda model: dict.fromkeys(TASKS, 0.5),
    }
    exec(blocks(page, "mtlweight.DWA").replace("mtlweight.DWA", f"mtlweight.{name}"), scope)
    assert not torch.equal(model.weight, start)
    assert scope["strategy"].epoch == 3


def test_spending_on_data() -> None:
    model = nn.Linear(2, 1)
    names = tuple("012")
    code = (
        blocks("docs/spending.md", "sampler.track").replace("1000 * 32", "3 * 8").replace("32", "8")
    )
    code = code.replace(", num_workers=4", "").replace(
        "sample_losses, batch.tasks", "(sample_losses := model(batch.x).square()), batch.tasks"
    )
    strategy = mtlweight.FocalAchievement(3, references=[1.0, 1.0, 1.0], gamma=2)
    scope: dict[str, Any] = {
        "mtlweight": mtlweight,
        "strategy": strategy,
        "task_of_sample": torch.arange(30) % 3,
        "dataset": Points(),
        "DataLoader": DataLoader,
        "intervals": 2,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), 1e-5),
        "validate": lambda model: dict(zip(names, [0.0, 0.5, 1.0], strict=True)),
    }
    exec(code, scope)
    expected = torch.softmax(2 * torch.tensor([1.0, 0.5, 0.0]), 0)
    torch.testing.assert_close(strategy.weights, expected)
    assert (scope["sampler"].quotas - 24 * expected).abs().max() < 1


def test_writing_a_strategy() -> None:
    scope: dict[str, Any] = {"__name__": "writing"}
    exec(blocks("docs/writing.md", "class Softmax"), scope)
    theta = torch.zeros(2, requires_grad=True)
    strategy = scope["Softmax"](["a", "b"], temperature=0.5)
    strategy({"a": theta[0] + 1.0, "b": theta[1] + 2.0}).backward()
    torch.testing.assert_close(strategy.weights, torch.tensor([2.0, 4.0]).softmax(0))
    torch.testing.assert_close(theta.grad, strategy.weights)
    with pytest.raises(mtlweight.OptionError, match="temperature"):
        scope["Softmax"](2, temperature=0.0)


def test_degradation_and_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, Any] = {}
    exec(blocks("docs/sr/tasks.md", "degrade(hr, parameters)"), scope)
    assert scope["lr"].shape == (4, 3, 32, 32)
    exec(blocks("docs/sr/tasks.md", "TaskSpace("), scope)
    assert "Fraction(3, 10)" in capsys.readouterr().out


def test_the_study_is_a_library() -> None:
    exec(blocks("docs/sr/ablation.md", "run_ablation"), {})
