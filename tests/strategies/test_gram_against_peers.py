"""Strategies that read the Gram matrix, against what other libraries give where they are right.

LibMTL's latest release has no Aligned-MTL, ConFIG or Krum.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlweight import IMTL, IMTLG, AlignedMTL, ConFIG, GradVac, Krum, PCGrad
from mtlweight.gradient_strategy import GramStrategy
from tests.strategies.test_against_peers import _libmtl

torchjd = pytest.importorskip("torchjd.aggregation")

NUMBERS = 24
FAMILIES = ("random", "conflicting", "near duplicate", "deficient", "scaled")
INDEPENDENT = ("random", "conflicting", "near duplicate")


def jacobian(family: str, tasks: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * tasks + seed)
    rows = torch.randn(tasks, NUMBERS, generator=generator, dtype=torch.float64)
    if family == "conflicting":
        rows[1::2] = -rows[: len(rows[1::2])] + 0.3 * rows[1::2]
    elif family == "near duplicate":  # nearer ones are one gradient to ours, and two to peers
        rows[1] = rows[0] + 1e-2 * rows[1]
    elif family == "deficient":
        rank = max(2, tasks // 4)
        rows = torch.randn(tasks, rank, generator=generator, dtype=torch.float64) @ rows[:rank]
    elif family == "scaled":
        rows = rows * torch.logspace(-4, 4, tasks, dtype=torch.float64)[:, None]
    return rows


def cases(*families: str, least: int = 2) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("family", "tasks", "seed"),
        [
            pytest.param(family, tasks, seed, id=f"{family}-{tasks}-{seed}")
            for family in families
            for tasks in (2, 3, 4, 7, 16)
            for seed in range(3)
            if tasks >= least
        ],
    )


def step(strategy: GramStrategy, rows: Tensor, losses: Tensor | None = None) -> Tensor:
    """Returns the gradient, in double precision all the way."""
    losses = torch.ones(len(rows), dtype=torch.float64) if losses is None else losses
    return strategy.weigh(rows @ rows.T, losses) @ rows


def agree(one: Tensor, other: Tensor) -> None:
    assert (one - other).abs().max() <= 1e-6 * other.abs().max()


@contextmanager
def doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


class _Peer:
    """A weighting class of LibMTL on gradients that are given, in double precision."""

    def __init__(self, name: str, tasks: int) -> None:
        class Model(_libmtl(name)):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.theta = nn.Parameter(torch.zeros(NUMBERS))
                self.task_num, self.device, self.rep_grad = tasks, torch.device("cpu"), False
                self.init_param()

            def get_share_params(self) -> list[nn.Parameter]:
                return [self.theta]

            def zero_grad_share_params(self) -> None:
                assert self.theta.grad is not None
                self.theta.grad.zero_()

        with doubles():
            self.model = Model()

    def step(self, rows: Tensor, losses: Tensor | None = None, **options: Any) -> Tensor:
        self.model.theta.grad = torch.zeros(NUMBERS, dtype=torch.float64)
        worth = torch.ones(len(rows)) if losses is None else losses
        with doubles():
            self.model.backward(rows @ self.model.theta + worth, **options)
        gradient: Tensor = self.model.theta.grad
        return gradient


# --- equal projections, equal angles -------------------------------------------------------------


def bounded(peer: Tensor, rows: Tensor) -> Tensor:
    """Returns the step of a peer the right way, and no longer than the longest gradient."""
    longest = rows.norm(dim=1).max()
    uphill = (rows @ peer / rows.norm(dim=1)).sum() < 0
    if uphill or peer.norm() > longest:
        peer = peer / peer.norm() * (-longest if uphill else longest)
    return peer


@cases(*INDEPENDENT)
def test_imtl_g_of_torchjd(family: str, tasks: int, seed: int) -> None:
    rows = jacobian(family, tasks, seed)
    agree(step(IMTLG(tasks), rows), bounded(torchjd.IMTLG()(rows), rows))


@cases("deficient")
def test_imtl_g_of_torchjd_on_gradients_of_one_length(family: str, tasks: int, seed: int) -> None:
    """Of different lengths, its least squares favour the long ones, and scales turn the step."""
    rows = jacobian(family, tasks, seed)
    rows /= rows.norm(dim=1, keepdim=True)
    agree(step(IMTLG(tasks), rows), bounded(torchjd.IMTLG()(rows), rows))


def test_most_steps_are_those_of_the_paper() -> None:
    """So that the tests above compare more than directions."""
    same = []
    for tasks in (2, 3, 4, 7, 16):
        for seed in range(3):
            rows = jacobian("random", tasks, seed)
            peer = torchjd.IMTLG()(rows)
            same.append(torch.equal(bounded(peer, rows), peer))
    assert all(same)


@cases("random", "conflicting", "scaled")
def test_imtl_of_libmtl(family: str, tasks: int, seed: int) -> None:
    """Both halves, with scales that its own parameter was given.

    In the scaled family TorchJD is no reference: over eight decades, it takes the square of the
    shortest gradient for zero. LibMTL inverts a matrix that is singular for duplicates, and nearly
    so for near ones.
    """
    rows = jacobian(family, tasks, seed)
    strategy, peer = IMTL(tasks), _Peer("IMTL", tasks)
    values = torch.linspace(0.5, 3.0, tasks, dtype=torch.float64)
    strategy.log_scales = values.log().float()
    with torch.no_grad():
        peer.model.loss_scale.copy_(strategy.log_scales)
    d, wanted = step(strategy, rows, values), peer.step(rows, values)
    agree(d, bounded(wanted, strategy.scales[:, None] * rows))


@cases(*FAMILIES)
def test_config_of_torchjd(family: str, tasks: int, seed: int) -> None:
    rows = jacobian(family, tasks, seed)
    agree(step(ConFIG(tasks), rows), torchjd.ConFIG()(rows))


# --- alignment -----------------------------------------------------------------------------------


@cases(*INDEPENDENT, "deficient")
@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
def test_aligned_mtl_of_torchjd(family: str, tasks: int, seed: int, scale: Any) -> None:
    rows = jacobian(family, tasks, seed)
    agree(step(AlignedMTL(tasks, scale=scale), rows), torchjd.AlignedMTL(scale_mode=scale)(rows))
    p = torch.linspace(0.1, 2.0, tasks, dtype=torch.float64)
    peer = torchjd.AlignedMTL(pref_vector=p, scale_mode=scale)(rows)
    agree(step(AlignedMTL(tasks, scale=scale, preference=p), rows), peer)


@cases("scaled")
@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
def test_aligned_mtl_of_torchjd_over_four_decades(
    family: str, tasks: int, seed: int, scale: Any
) -> None:
    """Over eight, the least eigenvalue is below the rounding of the greatest, in any library."""
    rows = jacobian(family, tasks, seed)
    rows /= rows.norm(dim=1, keepdim=True).sqrt()
    agree(step(AlignedMTL(tasks, scale=scale), rows), torchjd.AlignedMTL(scale_mode=scale)(rows))


# --- projections ---------------------------------------------------------------------------------


@cases(*FAMILIES)
def test_gradvac_of_torchjd(
    family: str, tasks: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over steps, in the order of the tasks, without its absolute epsilon."""
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n))
    strategy, peer = GradVac(tasks, shuffle=False), torchjd.GradVac(eps=0.0)
    for number in range(4):
        rows = jacobian(family, tasks, seed + 10 * number)
        agree(step(strategy, rows), peer(rows))


@cases("random", "conflicting", "scaled")
def test_gradvac_of_libmtl(
    family: str, tasks: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step: its targets move only when it corrects, so that they never rise."""
    monkeypatch.setattr(random, "shuffle", lambda _: None)
    rows = jacobian(family, tasks, seed)
    peer = _Peer("GradVac", tasks).step(rows, beta=0.5)
    agree(step(GradVac(tasks, shuffle=False), rows), peer)
    agree(step(PCGrad(tasks, shuffle=False), rows), peer)


# --- robust choice -------------------------------------------------------------------------------


@cases("random", "conflicting", "deficient", "scaled", least=4)
def test_krum_of_torchjd(
    family: str, tasks: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its square root taken out: the paper adds up squared distances.

    And with two neighbours or more: with one, the closest pair ties, and shares in ours.
    """
    rows = jacobian(family, tasks, seed)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "sqrt", lambda x: x)
        for f, m in ((0, 1), (0, tasks // 2), (tasks - 4, 1), (tasks - 4, 3)):
            peer = torchjd.Krum(n_byzantine=f, n_selected=m)(rows)
            agree(step(Krum(tasks, byzantine=f, select=m), rows), peer)
