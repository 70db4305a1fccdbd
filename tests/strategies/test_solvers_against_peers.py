"""Strategies solved on the host, against other libraries at their tightest settings.

Where a peer's own solver stops early, ours must do better by the measure of the paper's problem.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from mtlweight import CAGrad, DualProj, FairGrad, NashMTL, UPGrad
from mtlweight.solvers import directed_min_norm_point
from tests.contract.strategies import solve
from tests.strategies.test_against_peers import libmtl_step

torchjd = pytest.importorskip("torchjd.aggregation")

NUMBERS = 24
FAMILIES = ("random", "conflicting", "near duplicate", "deficient", "scaled")


def jacobian(family: str, tasks: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * tasks + seed)
    rows: Tensor = torch.randn(tasks, NUMBERS, generator=generator, dtype=torch.float64)
    if family == "conflicting":
        rows[1::2] = -rows[: 2 * (tasks // 2) : 2] + 0.3 * rows[1::2]
    elif family == "near duplicate":
        rows[1] = rows[0] + 1e-6 * rows[1]
    elif family == "deficient":  # all on one side of a plane, or nothing but zero hurts none
        rank = max(1, tasks // 2)
        rows = torch.randn(tasks, rank, generator=generator, dtype=torch.float64) @ rows[:rank]
        rows = rows + 0.8 * rows.norm(dim=1, keepdim=True) * rows[0] / rows[0].norm()
    elif family == "scaled":
        rows = rows * torch.logspace(-4, 4, tasks, dtype=torch.float64)[:, None]
    return rows


def cases(*families: str, tasks: tuple[int, ...] = (2, 3, 5, 8, 16)) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("family", "tasks", "seed"),
        [
            pytest.param(*case, id="-".join(map(str, case)))
            for case in itertools.product(families or FAMILIES, tasks, range(3))
        ],
    )


def near(ours: Tensor, peer: Tensor, relative: float = 1e-6) -> bool:
    return bool((ours - peer).norm() <= relative * peer.norm())


@cases()
@pytest.mark.parametrize("name", ["UPGrad", "DualProj"])
def test_projections_of_torchjd(name: str, family: str, tasks: int, seed: int) -> None:
    """In unit rows with the lengths as preference, the same problem, since the peer adds to G."""
    pytest.importorskip("quadprog")
    pytest.importorskip("qpsolvers")
    from torchjd.linalg import QuadprogProjector

    rows = jacobian(family, tasks, seed)
    norms = rows.norm(dim=1)
    peer = getattr(torchjd, name)(
        pref_vector=norms / tasks, projector=QuadprogProjector(norm_eps=0.0, reg_eps=1e-13)
    )
    d, _ = solve({"UPGrad": UPGrad, "DualProj": DualProj}[name](tasks), rows)
    wanted = peer(rows / norms[:, None])
    assert near(d, wanted) or (d - wanted).norm() <= 1e-9 * norms.max()


@cases()
def test_cagrad_of_torchjd(family: str, tasks: int, seed: int) -> None:
    """Its cone solver is right to some seven digits of the longest gradient."""
    pytest.importorskip("cvxpy")
    pytest.importorskip("clarabel")
    rows = jacobian(family, tasks, seed)
    mean = rows.mean(0)
    for c in (0.2, 0.5, 0.9):
        d, _ = solve(CAGrad(tasks, c=c, division="none"), rows)
        peer = torchjd.CAGrad(c=c, norm_eps=1e-12)(rows)
        assert (d - mean).norm() <= c * mean.norm() * (1 + 1e-9)
        assert (rows @ d).min() >= (rows @ peer).min() - 1e-8 * (rows @ mean).abs().max()
        if family != "scaled":
            assert near(d, peer, 1e-3)


def misses(rows: Tensor, w: Tensor, alpha: float) -> float:
    """Returns by how much (G w)_i = w_i^(-1/alpha) is missed, at most, relative."""
    return (w ** (1 / alpha) * (rows @ (w @ rows)) - 1).abs().max().item()


def weights_of(d: Tensor, rows: Tensor) -> Tensor:
    """Returns the weights w of d = J^T w for independent rows, by least squares in unit rows."""
    norms = rows.norm(dim=1)
    solution = torch.linalg.lstsq((rows / norms[:, None]).T, d[:, None], driver="gelsd").solution
    weights: Tensor = solution[:, 0] / norms
    return weights


@pytest.mark.filterwarnings("ignore::UserWarning")  # cvxpy on the peer's parameters
@cases("random", "conflicting", "scaled", tasks=(2, 3, 5, 8))
def test_nash_of_torchjd(family: str, tasks: int, seed: int) -> None:
    """In unit rows, which change nothing but its digits; it stops at a thousandth."""
    pytest.importorskip("cvxpy")
    pytest.importorskip("ecos")
    rows = jacobian(family, tasks, seed)
    unit = rows / rows.norm(dim=1, keepdim=True)
    d, _ = solve(NashMTL(tasks, max_norm=None), rows)
    peer = torchjd.NashMTL(tasks, max_norm=0.0, optim_niter=100)(unit)
    assert misses(rows, weights_of(d, rows), 1.0) <= 1e-8
    missed = misses(unit, weights_of(peer, unit), 1.0)
    assert misses(unit, weights_of(d, unit), 1.0) <= missed
    if missed <= 0.01:
        assert near(d, peer, 0.01)


@cases("random", "conflicting", "near duplicate")
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
def test_fairgrad_of_torchjd(family: str, tasks: int, seed: int, alpha: float) -> None:
    """From equal weights by least squares, which may end anywhere; on a root they agree."""
    rows = jacobian(family, tasks, seed)
    gram = rows @ rows.T
    d, _ = solve(FairGrad(tasks, alpha=alpha, max_norm=None), rows)
    strategy = FairGrad(tasks, alpha=alpha, max_norm=None)
    w = strategy.weigh(gram, torch.ones(tasks, dtype=torch.float64))
    assert misses(rows, w, alpha) <= 1e-8
    found = torchjd.FairGrad(alpha=alpha, max_iters=2000).gramian_weighting(gram)
    missed = misses(rows, found, alpha)
    assert misses(rows, w, alpha) <= max(missed, 1e-8)
    if missed <= 1e-6:
        assert near(d, found @ rows, 1e-5)


@cases("random", "conflicting", "near duplicate", "deficient", tasks=(2, 3, 8))
@pytest.mark.parametrize("strength", [0.0, 0.3, 3.0])
def test_the_problem_of_sdmgrad_of_torchjd(
    family: str, tasks: int, seed: int, strength: float
) -> None:
    """Its default steps jump between vertices; short ones get there from above."""
    rows = jacobian(family, tasks, seed)
    gram = rows @ rows.T
    v = directed_min_norm_point(gram, strength) + strength / tasks
    peer = torchjd.SDMGradWeighting(lr=0.1, momentum=0.5, n_iter=500, lambda_=strength)
    found = peer(gram) * (1 + strength)
    ours, theirs = v @ gram @ v, found @ gram @ found
    assert ours <= theirs + 1e-12 * gram.max()
    assert theirs - ours <= 1e-3 * gram.max()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("c", [0.2, 0.5])
def test_cagrad_of_libmtl(seed: int, c: float) -> None:
    """With three tasks, the only number its code has; in single precision."""
    rows = jacobian("random", 3, seed)
    for code, division in enumerate(("none", "square", "linear")):
        d, _ = solve(CAGrad(3, c=c, division=division), rows)  # type: ignore[arg-type]
        peer = libmtl_step("CAGrad", rows, calpha=c, rescale=code)
        assert near(d, peer, 2e-3)
        assert (rows @ d).min() >= (rows @ peer).min() - 1e-6
