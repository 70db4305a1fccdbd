"""The same numbers as other libraries give, where they follow the paper: from task gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlweight import ExcessMTL, GradDrop, MoDo, SDMGrad, TrimmedMean
from tests.contract.strategies import solve
from tests.strategies.test_against_peers import CASES, _libmtl, jacobian

torchjd_aggregation = pytest.importorskip("torchjd.aggregation")


@pytest.mark.parametrize("warmup", [1, 4])
@pytest.mark.parametrize("step_size", [0.01, 1.0])
@pytest.mark.parametrize("family", ["random", "conflicting", "scaled"])
def test_excess_mtl_of_torchjd(family: str, step_size: float, warmup: int) -> None:
    """With a warm-up: without, it takes the raw risk of the first step for a ratio."""
    peer = torchjd_aggregation.ExcessMTL(robust_step_size=step_size, n_warmup_steps=warmup)
    strategy = ExcessMTL(3, step_size=step_size, warmup=warmup)
    for seed in range(10):
        rows = 10 * jacobian(family, 3, seed)
        d, _ = solve(strategy, rows)
        torch.testing.assert_close(d, peer(rows), rtol=2e-3, atol=2e-3 * rows.abs().max().item())


def test_excess_mtl_where_the_warm_up_of_torchjd_is_none() -> None:
    """Its first weights are those of one task; the paper's are equal."""
    rows = torch.randn(3, 10_000, generator=torch.Generator().manual_seed(0))
    rows = rows * torch.tensor([1.0, 2.0, 3.0])[:, None]
    peer = torchjd_aggregation.ExcessMTLWeighting()(rows)
    assert not (peer > 1e-6).all()
    _, w = solve(ExcessMTL(3, step_size=1.0), rows)
    torch.testing.assert_close(w, torch.full((3,), 1 / 3))


@pytest.mark.parametrize(("family", "tasks", "seed"), CASES)
@pytest.mark.parametrize("leaky", [False, True])
def test_graddrop_of_torchjd(
    family: str, tasks: int, seed: int, leaky: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same lots."""
    rows = jacobian(family, tasks, seed)
    lots = torch.rand(8, generator=torch.Generator().manual_seed(seed)).double()
    leak = torch.linspace(0, 1, tasks, dtype=torch.float64)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", lambda *_, **__: lots)
        patch.setattr("mtlweight.strategies.masks._lots", lambda *_: 2 * lots - 1)
        peer = torchjd_aggregation.GradDrop(leak=leak if leaky else None)(rows)
        d, _ = solve(GradDrop(tasks, leak=leak.tolist() if leaky else 0.0), rows)
    torch.testing.assert_close(d, peer, rtol=1e-6, atol=1e-6 * rows.abs().max().item())


@pytest.mark.parametrize("trim", [0, 1, 2])
@pytest.mark.parametrize(("family", "tasks", "seed"), CASES)
def test_trimmed_mean_of_torchjd(family: str, tasks: int, seed: int, trim: int) -> None:
    if tasks < 2 * trim + 1:  # which it refuses
        return
    rows = jacobian(family, tasks, seed)
    d, _ = solve(TrimmedMean(tasks, trim=trim), rows)
    peer = torchjd_aggregation.TrimmedMean(trim)(rows)
    torch.testing.assert_close(d, peer, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tasks", [2, 3, 5])
@pytest.mark.parametrize(("step_size", "rho"), [(0.001, 0.1), (0.1, 0.0), (1.0, 0.5)])
def test_modo_of_torchjd(tasks: int, step_size: float, rho: float) -> None:
    peer = torchjd_aggregation.MoDoWeighting(gamma=step_size, rho=rho)
    strategy = MoDo(tasks, step_size=step_size, rho=rho)
    for seed in range(6):
        batches = [jacobian("random", tasks, 10 * seed + i) for i in range(3)]
        theta = torch.zeros(8, dtype=torch.float64, requires_grad=True)
        first, *others = ([row @ theta + 1 for row in rows] for rows in batches)
        strategy(first, independent=others).backward()
        w = peer(batches[1] @ batches[2].T)
        assert theta.grad is not None
        torch.testing.assert_close(strategy.weights.double(), w, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(theta.grad, w @ batches[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "tasks", "seed"), CASES)
def test_sdmgrad_of_torchjd(family: str, tasks: int, seed: int) -> None:
    """Its steps do not settle; nowhere do they come to a shorter direction."""
    rows = jacobian(family, tasks, seed)
    peer = torchjd_aggregation.SDMGradWeighting(lambda_=0.3)
    gram = rows @ rows.T
    d, _ = solve(SDMGrad(tasks), rows)
    for _ in range(3):
        w = peer(gram)
        assert d.norm() <= (w @ rows).norm() * (1 + 1e-6) + 1e-6 * rows.norm(dim=1).min()


@pytest.mark.parametrize("leak", [0.0, 0.4])
@pytest.mark.parametrize("seed", range(4))
def test_graddrop_on_features_of_libmtl(
    leak: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same lots."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(5, 4, 2, generator=generator)
    rows = torch.randn(3, 5, 4, 2, generator=generator)
    lots = torch.rand(4, 2, generator=generator)

    class Model(_libmtl("GradDrop")):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.task_num, self.device, self.rep_grad = 3, torch.device("cpu"), True
            self.task_name = ["a", "b", "c"]
            self.leaf = nn.Parameter(z.clone())
            self.rep = self.leaf * 1.0
            self.rep_tasks = {name: z.clone().requires_grad_() for name in self.task_name}

    model = Model()
    losses = [(row * rep).sum() for row, rep in zip(rows, model.rep_tasks.values(), strict=True)]
    leaf = z.clone().requires_grad_()
    features = leaf * 1.0

    def rand(*_: Any, **__: Any) -> Tensor:
        return lots.reshape(-1)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand_like", lambda *_: lots)
        patch.setattr(torch, "rand", rand)
        patch.setattr("mtlweight.strategies.masks._lots", lambda *_: 2 * lots.reshape(-1) - 1)
        model.backward(losses, leak=leak)
        strategy = GradDrop(3, leak=leak)
        strategy([10 + (row * features).sum() for row in rows], shared=features).backward()
    torch.testing.assert_close(leaf.grad, model.leaf.grad, rtol=1e-5, atol=1e-5)
