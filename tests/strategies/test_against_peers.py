"""The same numbers as other libraries give, where they are right."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlweight import DWA, GLS, IMTLL, MGDA, UW, Equal, PCGrad
from tests.contract.strategies import solve

torchjd_aggregation = pytest.importorskip("torchjd.aggregation")
torchjd_scalarization = pytest.importorskip("torchjd.scalarization")

FAMILIES = ("random", "conflicting", "near duplicate", "deficient", "scaled")


def jacobian(family: str, tasks: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * tasks + seed)
    rows = torch.randn(tasks, 8, generator=generator, dtype=torch.float64)
    if family == "conflicting":
        rows[1::2] = -rows[: len(rows[1::2])] + 0.3 * rows[1::2]
    elif family == "near duplicate":
        rows[1] = rows[0] + 1e-6 * rows[1]
    elif family == "deficient":
        rows = torch.randn(tasks, 2, generator=generator, dtype=torch.float64) @ rows[:2]
    elif family == "scaled":
        rows = rows * torch.logspace(-3, 3, tasks, dtype=torch.float64)[:, None]
    return rows


CASES = [
    pytest.param(family, tasks, seed, id=f"{family}-{tasks}-{seed}")
    for family in FAMILIES
    for tasks in (2, 3, 5)
    for seed in range(3)
]


@pytest.mark.parametrize(("family", "tasks", "seed"), CASES)
def test_mgda_of_torchjd(family: str, tasks: int, seed: int) -> None:
    """Frank and Wolfe's steps get close to the shortest vector, and never below it."""
    rows = jacobian(family, tasks, seed)
    peer = torchjd_aggregation.MGDA(epsilon=1e-7, max_iters=3000)(rows)
    d, _ = solve(MGDA(tasks), rows)
    assert d.norm() <= peer.norm() * (1 + 1e-9) + 1e-12 * rows.norm()
    if family != "scaled":  # where its steps are too long for the short gradients
        assert (d - peer).norm() <= 0.05 * rows.norm(dim=1).min()


@pytest.mark.parametrize(("family", "tasks", "seed"), CASES)
def test_pcgrad_of_torchjd(
    family: str, tasks: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Visiting in the order of the tasks, since each library draws its own orders."""
    rows = jacobian(family, tasks, seed)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randperm", lambda n, **_: torch.arange(n))
        peer = torchjd_aggregation.PCGrad()(rows)
    d, _ = solve(PCGrad(tasks, shuffle=False), rows)
    scale = rows.abs().max().item()
    torch.testing.assert_close(d, peer, rtol=1e-7, atol=1e-7 * scale)


def epochs(tasks: int = 3) -> Iterator[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for epoch in range(5):
        yield [
            (0.2 + torch.rand(tasks, generator=generator, dtype=torch.float64)) / (1 + 0.2 * epoch)
            for _ in range(3)
        ]


@pytest.mark.parametrize("temperature", [0.5, 2.0, 10.0])
def test_dwa_of_torchjd(temperature: float) -> None:
    peer = torchjd_scalarization.DWA(temperature=temperature)
    strategy = DWA(3, temperature=temperature, rescale="tasks")
    for steps in epochs():
        for values in steps:
            theta = values.clone().requires_grad_()
            peer(theta).backward()
            _, w = solve(strategy, torch.eye(3).double(), values)
            assert theta.grad is not None
            torch.testing.assert_close(w, theta.grad, rtol=1e-5, atol=1e-6)
        peer.step()
        strategy.end_epoch()


@pytest.mark.parametrize(
    ("build", "peer"),
    [(UW, torchjd_scalarization.UW), (IMTLL, torchjd_scalarization.IMTLL)],
)
def test_learned_weights_of_torchjd(build: Any, peer: Any) -> None:
    strategy, scalarizer = build(3, learning_rate=0.05), peer(3)
    optimizer = torch.optim.Adam(scalarizer.parameters(), 0.05)
    for steps in epochs():
        for values in steps:
            theta = values.float().requires_grad_()
            total = scalarizer(theta)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            leaf = values.float().requires_grad_()
            ours = strategy(list(leaf.unbind()))
            assert ours.item() == pytest.approx(total.item(), rel=1e-4, abs=1e-5)
            assert theta.grad is not None
            torch.testing.assert_close(strategy.weights, theta.grad, rtol=1e-4, atol=1e-5)


def test_geometric_mean_of_torchjd() -> None:
    for steps in epochs():
        for values in steps:
            theta = values.clone().requires_grad_()
            total = torchjd_scalarization.GeometricMean()(theta)
            total.backward()
            strategy = GLS(3)
            leaf = values.clone().requires_grad_()
            assert strategy(list(leaf.unbind())).item() == pytest.approx(total.item(), rel=1e-6)
            assert theta.grad is not None
            torch.testing.assert_close(strategy.weights.double(), theta.grad, rtol=1e-6, atol=1e-7)


# --- LibMTL --------------------------------------------------------------------------------------
# Its package can't be imported (the trainer needs packages that it doesn't declare), so its
# weighting classes are loaded from their files.


def _libmtl(name: str) -> Any:
    try:
        root = Path(str(distribution("LibMTL").locate_file("LibMTL/weighting")))
    except ModuleNotFoundError:
        pytest.skip("LibMTL is not installed")
    for package in ("LibMTL", "LibMTL.weighting"):
        sys.modules.setdefault(package, types.ModuleType(package))
    for module in ("abstract_weighting", name):
        full = f"LibMTL.weighting.{module}"
        if full not in sys.modules:
            spec = importlib.util.spec_from_file_location(full, root / f"{module}.py")
            assert spec is not None
            assert spec.loader is not None
            sys.modules[full] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[full])
    return getattr(sys.modules[f"LibMTL.weighting.{name}"], name)


def libmtl_step(name: str, rows: Tensor, values: Tensor | None = None, **options: Any) -> Tensor:
    """Returns the shared gradient of one step of LibMTL, in single precision as it computes."""

    class Model(_libmtl(name)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.theta = nn.Parameter(torch.zeros(rows.shape[1]))
            self.task_num, self.device, self.rep_grad = len(rows), torch.device("cpu"), False
            self.init_param()
            for key, value in options.pop("attributes", {}).items():
                setattr(self, key, value)

        def get_share_params(self) -> list[nn.Parameter]:
            return [self.theta]

        def zero_grad_share_params(self) -> None:
            assert self.theta.grad is not None
            self.theta.grad.zero_()

    model = Model()
    worth = torch.ones(len(rows)) if values is None else values.float()
    losses = rows.float() @ model.theta + worth
    model.backward(losses, **options)
    gradient: Tensor = model.theta.grad.double()
    return gradient


def test_sums_and_geometric_means_of_libmtl() -> None:
    """LibMTL's reported GLS weights are upside down; its gradient is right."""
    values = torch.tensor([2.0, 0.5, 1.0])
    for seed in range(3):
        rows = jacobian("random", 3, seed)
        d, _ = solve(Equal(3, rescale="tasks"), rows, values)
        torch.testing.assert_close(d, libmtl_step("EW", rows, values), rtol=1e-5, atol=1e-5)
        d, _ = solve(GLS(3), rows, values)
        torch.testing.assert_close(d, libmtl_step("GLS", rows, values), rtol=1e-5, atol=1e-5)


def test_dwa_of_libmtl() -> None:
    import numpy as np

    history = np.array([[4.0, 2.0], [1.0, 0.5], [1.0, 1.0]])
    strategy = DWA(3, rescale="tasks")
    rows = jacobian("random", 3, 0)
    for epoch in range(2):
        solve(strategy, rows, torch.from_numpy(history[:, epoch]))
        strategy.end_epoch()
    d, _ = solve(strategy, rows)
    peer = libmtl_step("DWA", rows, T=2.0, attributes={"epoch": 2, "train_loss_buffer": history})
    torch.testing.assert_close(d, peer, rtol=1e-5, atol=1e-5)


def test_uw_of_libmtl() -> None:
    """From its own start, s = -1/2."""
    for seed in range(3):
        rows = jacobian("random", 3, seed)
        d, _ = solve(UW(3, initial=-0.5), rows)
        torch.testing.assert_close(d, libmtl_step("UW", rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_mgda_of_libmtl(tasks: int, seed: int) -> None:
    """LibMTL clips the weights of two tasks to [0.001, 0.999], and stops its search early.

    Without gradients above 1e4 and without repeated rows, which it can't do.
    """
    rows = jacobian("random", tasks, seed)
    peer = libmtl_step("MGDA", rows, mgda_gn="none")
    d, _ = solve(MGDA(tasks), rows)
    assert d.norm() <= peer.norm() + 1e-5
    assert (d - peer).norm() <= 0.15 * rows.norm(dim=1).min()


@pytest.mark.parametrize("family", ["random", "conflicting", "scaled"])
@pytest.mark.parametrize("seed", range(3))
def test_pcgrad_of_libmtl(family: str, seed: int) -> None:
    """With two tasks; with more it projects a task on its own gradient too, which is wrong."""
    rows = jacobian(family, 2, seed)
    d, _ = solve(PCGrad(2), rows)
    peer = libmtl_step("PCGrad", rows)
    torch.testing.assert_close(d, peer, rtol=1e-4, atol=1e-5 * rows.abs().max().item())
