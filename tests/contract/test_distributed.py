"""Two processes are one process on the union of their batches."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F

import mtlweight
from tests.contract.strategies import (
    BY_NAME,
    CASES,
    OF_GRADIENTS,
    OF_LOSSES,
    TASKS,
    Case,
    Network,
    batch,
    gradient_now,
    metrics_of,
    replay,
)

RANKS = 2
STEPS = 3
# How many samples of each task the ranks hold.
EVEN = {"a": (4, 4), "b": (4, 4), "c": (4, 4)}
UNEVEN = {"a": (5, 1), "b": (2, 4), "c": (3, 3)}
PARTIAL = {"a": (4, 0), "b": (3, 2), "c": (0, 5)}
LACKING = {"a": (4, 4), "b": (3, 2), "c": (0, 5)}

WITHOUT_COUNTS = [BY_NAME[name] for name in ("equal", "dwa", "log_equal", "pcgrad", "db_mtl")]

EQUAL_NORM = ("dwa", "mgda", "db_mtl", "excess_mtl", "graddrop", "trimmed_mean")

Data = dict[str, tuple[Tensor, Tensor]]


def equal_norm(name: str) -> Case:
    return Case(name, lambda tasks: mtlweight.build(name, tasks, rescale="equal-norm"))


def data_of(step: int, counts: dict[str, tuple[int, ...]], rank: int | None) -> Data:
    """Returns each task's samples of a rank, or of all."""
    found = {}
    for i, task in enumerate(TASKS):
        x, targets = batch(10 * step + i, size=sum(counts[task]), dtype=torch.float64)
        start = sum(counts[task][: rank or 0])
        here = slice(None) if rank is None else slice(start, start + counts[task][rank])
        if len(x[here]):
            found[task] = (x[here], targets[task][here])
    return found


class Split(nn.Module):
    """Runs all tasks in one forward pass, each on its own samples."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network().double()

    def forward(self, data: Data) -> tuple[Tensor, dict[str, Tensor]]:
        features = self.network.trunk(torch.cat([x for x, _ in data.values()]))
        pieces = features.split([len(x) for x, _ in data.values()])
        losses = {
            task: F.mse_loss(self.network.heads[task](piece), y)
            for (task, (_, y)), piece in zip(data.items(), pieces, strict=True)
        }
        return features, losses


def train(
    case: Case,
    counts: dict[str, tuple[int, ...]],
    rank: int | None,
    *,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    features: bool = False,
) -> dict[str, list[Tensor]]:
    """Returns the gradients, weights and values of a few steps."""
    model = Split()
    wrapped = wrap(model)
    strategy = case.build(TASKS)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    record: dict[str, list[Tensor]] = {"gradients": [], "weights": [], "values": []}
    for step in range(STEPS):
        data = data_of(step, counts, rank)
        shared, losses = wrapped(data)
        replay(lambda step=step: model(data_of(step, counts, None))[1])
        optimizer.zero_grad()
        given: dict[str, Any] = {}
        if rank is not None and counts is not EVEN:
            given["counts"] = {task: len(x) for task, (x, _) in data.items()}
        total = strategy(losses, shared=shared if features else None, **given)
        total.backward()
        if rank is not None and wrapped is model:
            for parameter in model.parameters():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
                parameter.grad /= RANKS
        optimizer.step()
        record["gradients"].append(gradient_now(model.parameters()))
        record["weights"].append(strategy.weights.clone())
        record["values"].append(total.detach())
        if step % 2:
            strategy.end_epoch(metrics_of(TASKS, 0.02 * step))
    return record


def bad_value(case: Case, rank: int) -> str:
    """Returns what a rank hears when another one's loss is not a number."""
    strategy = case.build(TASKS)
    _, losses = Split()(data_of(0, EVEN, rank))
    if rank == 1:
        losses["b"] = losses["b"] * torch.nan
    try:
        strategy(losses)
    except ValueError as error:
        return str(error)
    return "accepted"


def absent_on_one(case: Case, rank: int) -> str:
    """Returns what a rank hears when a task whose gradient is needed is absent from one."""
    strategy = case.build(TASKS)
    _, losses = Split()(data_of(0, LACKING, rank))
    try:
        strategy(losses)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def infinite_on_one(case: Case, rank: int, features: bool) -> str:
    """Returns what a rank hears when only another one's gradient is not finite."""
    strategy = case.build(TASKS)
    shared, losses = Split()(data_of(0, EVEN, rank))
    if rank == 1:
        losses["b"] = losses["b"] + (0 * shared).sum().abs().sqrt()
    try:
        strategy(losses, shared=shared if features else None)
    except ValueError as error:
        return str(error)
    return "accepted"


def dead_on_one(rank: int | None) -> Tensor:
    """Returns weights where what is shared is told by gradients, and one branch has none."""
    torch.manual_seed(0)
    trunk, branch, head = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 2)
    with torch.no_grad():
        branch.weight.fill_(1.0)
        branch.bias.fill_(-1.0)
    x = torch.rand(8, 6)
    x[4:] *= -1  # where the branch is dead
    x = x if rank is None else x[4 * rank : 4 * rank + 4]
    strategy = BY_NAME["mgda"].build(("a", "b"))
    strategy(head(trunk(x) + branch(x).relu()).square().mean(0))
    return strategy.weights


def _ddp(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def worker(rank: int, folder: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=8),
    )
    found: dict[str, Any] = {}

    def note(key: str, run: Callable[[], Any]) -> None:
        try:
            found[key] = run()
        except Exception as error:
            found[key] = f"{type(error).__name__}: {error}"

    for case in CASES:
        if case in WITHOUT_COUNTS:
            note(f"even/{case}", lambda case=case: train(case, EVEN, rank, wrap=_ddp))
        note(f"uneven/{case}", lambda case=case: train(case, UNEVEN, rank, wrap=_ddp))
        note(f"bad/{case}", lambda case=case: bad_value(case, rank))
        if case.gradients:
            note(
                f"features/{case}",
                lambda case=case: train(case, UNEVEN, rank, wrap=_ddp, features=True),
            )
        elif not case.looks_ahead:
            note(f"partial/{case}", lambda case=case: train(case, PARTIAL, rank))
    for name in EQUAL_NORM:
        case = equal_norm(name)
        note(f"equal/{case}", lambda case=case: train(case, UNEVEN, rank, wrap=_ddp, features=True))
    note("dead", lambda: dead_on_one(rank))
    # What follows may hang the group.
    note("absent", lambda: absent_on_one(BY_NAME["pcgrad"], rank))
    for case in OF_GRADIENTS:
        for features in (False, True):
            key = f"infinite/{case}/{features}"
            note(key, lambda case=case, way=features: infinite_on_one(case, rank, way))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, args=(str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def same(ranks: list[dict[str, Any]], key: str, one: dict[str, list[Tensor]], values: bool) -> None:
    for rank in ranks:
        assert not isinstance(rank[key], str), rank[key]
        for step in range(STEPS):
            torch.testing.assert_close(
                rank[key]["weights"][step], one["weights"][step], rtol=1e-6, atol=1e-7
            )
            torch.testing.assert_close(
                rank[key]["gradients"][step], one["gradients"][step], rtol=1e-10, atol=1e-10
            )
            if values:
                torch.testing.assert_close(
                    rank[key]["values"][step], one["values"][step], rtol=1e-10, atol=1e-10
                )


@pytest.mark.parametrize("case", WITHOUT_COUNTS, ids=str)
def test_even_shares(ranks: list[dict[str, Any]], case: Case) -> None:
    same(ranks, f"even/{case}", train(case, EVEN, None), values=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_uneven_shares(ranks: list[dict[str, Any]], case: Case) -> None:
    same(ranks, f"uneven/{case}", train(case, UNEVEN, None), values=True)


@pytest.mark.parametrize("case", OF_GRADIENTS, ids=str)
def test_shared_features(ranks: list[dict[str, Any]], case: Case) -> None:
    one = train(case, UNEVEN, None, features=True)
    same(ranks, f"features/{case}", one, values=True)


@pytest.mark.parametrize("case", [c for c in OF_LOSSES if not c.looks_ahead], ids=str)
def test_tasks_on_one_rank_alone(ranks: list[dict[str, Any]], case: Case) -> None:
    same(ranks, f"partial/{case}", train(case, PARTIAL, None), values=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_all_ranks_refuse_a_bad_value(ranks: list[dict[str, Any]], case: Case) -> None:
    for rank in ranks:
        assert "'b' is nan" in rank[f"bad/{case}"]


def test_all_ranks_refuse_an_absent_gradient(ranks: list[dict[str, Any]]) -> None:
    """A decision made on one rank would leave the others waiting for ever."""
    for rank in ranks:
        assert rank["absent"].startswith("ValueError"), rank["absent"]
        assert "absent" in rank["absent"]


@pytest.mark.parametrize("features", [False, True], ids=["parameters", "features"])
@pytest.mark.parametrize("case", OF_GRADIENTS, ids=str)
def test_all_ranks_refuse_an_infinite_gradient(
    ranks: list[dict[str, Any]], case: Case, features: bool
) -> None:
    for rank in ranks:
        heard = rank[f"infinite/{case}/{features}"]
        assert "gradient of task 'b' is not finite" in heard or (
            case.in_turn and not features and heard == "accepted"  # it was the turn of another
        )


@pytest.mark.parametrize("name", EQUAL_NORM)
def test_equal_norm_of_features(ranks: list[dict[str, Any]], name: str) -> None:
    case = equal_norm(name)
    one = train(case, UNEVEN, None, features=True)
    same(ranks, f"equal/{case}", one, values=True)


def test_what_is_shared_is_told_by_the_gradients_of_all_ranks(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        torch.testing.assert_close(rank["dead"], dead_on_one(None), rtol=1e-5, atol=1e-6)
