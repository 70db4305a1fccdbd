"""The code in the documentation runs, and what is said of strategies there is so."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import mtlweight
from mtlweight.options import options_of
from mtlweight.strategies import STRATEGIES
from tests.contract.strategies import REGISTERED

ROOT = Path(__file__).parents[1]
TASKS = ("seg", "depth", "normal")
FACTS: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "hooks" / "facts.py"))


def all_blocks(path: str) -> list[str]:
    """Returns the Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)


def blocks(path: str, containing: str) -> str:
    """Returns the only Python block of a page that contains a text."""
    (block,) = [code for code in all_blocks(path) if containing in code]
    return block


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, 4), nn.Tanh())
        self.heads = nn.ModuleDict({task: nn.Linear(4, 1) for task in TASKS})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.encoder(x)
        return {task: head(features) for task, head in self.heads.items()}


def losses_of(model: Any, *inputs: Tensor) -> dict[str, Tensor]:
    """Returns losses of a batch, or of features and a batch."""
    if len(inputs) == 2:
        outputs = {task: head(inputs[0]) for task, head in model.heads.items()}
    else:
        outputs = model(inputs[0])
    return {task: (output - 1).square().mean() for task, output in outputs.items()}


def endless() -> Iterator[Tensor]:
    while True:
        yield torch.randn(4, 2)


@pytest.fixture
def scope() -> dict[str, Any]:
    torch.manual_seed(0)
    model = Network()
    x = torch.randn(6, 2)
    return {
        "torch": torch,
        "mtlweight": mtlweight,
        "tasks": TASKS,
        "references": dict.fromkeys(TASKS, 0.8),
        "model": model,
        "x": x,
        "y": torch.ones(6, 1),
        "batch": x,
        "batches": endless(),
        "held_out": endless(),
        "task_ids": [0, 1, 2, 0, 1, 2],
        "compute_losses": losses_of,
        "losses": losses_of(model, x),
        "loss_function": lambda outputs, y: sum((o - y).square().mean() for o in outputs.values()),
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
    }


def takes_steps(strategy: mtlweight.Strategy, model: Network) -> None:
    for _ in range(2):
        model.zero_grad()
        strategy(losses_of(model, torch.randn(4, 2))).backward()
        strategy.end_epoch(dict.fromkeys(TASKS, 0.5))
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("number", range(len(all_blocks("docs/which.md"))))
def test_which_strategy(scope: dict[str, Any], number: int) -> None:
    exec(all_blocks("docs/which.md")[number], scope)
    takes_steps(scope["strategy"], scope["model"])


@pytest.mark.parametrize(
    ("containing", "name"),
    [
        ("shared=model.encoder.parameters()", "PCGrad"),
        ("one pass through all heads", "MGDA"),
        ("rows_by_task", "UPGrad"),
        ("independent=", "MoDo"),
        ("after_step", "FAMO"),
    ],
)
def test_pieces_of_the_guide(scope: dict[str, Any], containing: str, name: str) -> None:
    scope["strategy"] = getattr(mtlweight, name)(TASKS)
    exec(blocks("docs/guide.md", containing), scope)
    if containing != "after_step":
        scope["loss"].backward()
    assert scope["model"].encoder[0].weight.grad.any()


@pytest.mark.parametrize("containing", ["chunk=", "def validation", "mtlweight.Smoothed"])
def test_strategies_of_the_guide(scope: dict[str, Any], containing: str) -> None:
    lines = blocks("docs/guide.md", containing)
    for line in re.findall(r"^strategy = .*$", lines, re.MULTILINE):
        exec(re.sub(r"^strategy = .*$", "", lines, flags=re.MULTILINE) + line, scope)
        takes_steps(scope["strategy"], scope["model"])


@pytest.mark.parametrize("name", ["PCGrad", "DBMTL"])
def test_compiled_training(
    scope: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compiler(model, backend="aot_eager"))
    scope["strategy"] = getattr(mtlweight, name)(TASKS)
    code = blocks("docs/guide.md", "donated_buffer")
    with torch._functorch.config.patch(donated_buffer=True):  # what it was is put back
        exec(code, scope)
        scope["loss"].backward()
    assert scope["model"].encoder[0].weight.grad.any()


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
    exec(blocks(page, "for epoch in").replace("mtlweight.DWA", f"mtlweight.{name}"), scope)
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


def test_writing_strategies_of_other_kinds() -> None:
    scope: dict[str, Any] = {"__name__": "writing"}
    for code in all_blocks("docs/writing.md"):
        exec(code, scope)

    def step(strategy: mtlweight.Strategy, rows: list[list[float]]) -> tuple[Any, Any]:
        theta = torch.zeros(3, requires_grad=True)
        strategy([torch.tensor(row) @ theta + 1 for row in rows]).backward()
        return theta.grad, strategy.weights

    d, weights = step(scope["UnitSum"](2), [[2.0, 0.0, 0.0], [0.0, 0.5, 0.0]])
    torch.testing.assert_close((d, weights), (torch.tensor([1.0, 1, 0]), torch.tensor([0.5, 2])))
    opposed = [[2.0, 1.0, 0.0], [1.0, -1.0, 1.0]]
    d, weights = step(scope["Agreement"](2), opposed)
    torch.testing.assert_close(d, torch.tensor([3.0, 0, 0]))
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 1 / 3]))
    d, weights = step(scope["Rounded"](scope["Agreement"](2)), opposed)
    torch.testing.assert_close(d, torch.tensor([2 * 1.05 + 0.9, 0, 0]))
    torch.testing.assert_close(weights, torch.tensor([0.7, 0.3]))


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


# --- the facts on the pages ----------------------------------------------------------------------


def test_every_strategy_is_in_one_family() -> None:
    names = [name for family in FACTS["FAMILIES"].values() for name in family]
    assert sorted(names) == sorted(STRATEGIES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_facts(name: str) -> None:
    case, strategy = REGISTERED[name], STRATEGIES[name]
    needs = "two more batches" if name in ("modo", "sdmgrad") else ""
    found = FACTS["run"](name, 3)
    if not needs and not case.looks_ahead:
        assert found.backwards == case.walks
        assert found.forwards == 1
    if case.one:
        assert all(abs(total - 1) < 1e-4 for total in found.sums)
    heads = {"weight": "weighted", "one": "plain", "log": r"\log", "scale": "scaled"}
    assert heads[case.heads] in FACTS["heads"](name)
    assert found.strategy.nonnegative_losses == case.nonnegative
    assert FACTS["reads_gradients"](strategy) == case.gradients
    told = {option for option, _, _ in FACTS["options"](name)} | set(FACTS["COMMON"])
    assert told >= set(options_of(strategy).model_fields)


def test_costs_in_words() -> None:
    assert FACTS["passes"]((0, 1), "backward") == "one backward pass"
    assert FACTS["passes"]((2, 1), "backward") == "2T + 1 backward passes"
    measured = FACTS["measure"]("db_mtl")
    assert (measured.backwards, measured.on_features) == ((1, 0), (0, 1))
    assert measured.buffers == {"averages": "[T, P]"}
    assert not measured.sums_to_one
    assert not measured.in_graph
    assert measured.nonnegative
