from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mtlweight import FairGrad, NashMTL, OptionError
from tests.contract.strategies import solve

J3 = torch.tensor([[3, 1, 0, 0], [-1, 2, 1, 0], [0, -1, 2, 2]], dtype=torch.float64)
J2 = torch.tensor([[1, 0], [-1, 1]], dtype=torch.float64)


def random_jacobian(seed: int, tasks: int = 3, numbers: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, numbers, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("strategy", "jacobian", "wanted"),
    [
        (NashMTL(3, max_norm=None), J3, (0.358356, 0.439202, 0.353836)),
        (NashMTL(2, max_norm=None), J2, (1.847759, 1.306563)),
        (FairGrad(3, alpha=1, max_norm=None), J3, (0.358356, 0.439202, 0.353836)),
        (FairGrad(3, alpha=0.5, max_norm=None), J3, (0.503089, 0.579738, 0.500124)),
        (FairGrad(3, max_norm=None), J3, (0.255914, 0.331935, 0.250455)),
        (FairGrad(3, alpha=5, max_norm=None), J3, (0.183193, 0.250383, 0.177382)),
    ],
)
def test_vectors(strategy: Any, jacobian: Tensor, wanted: tuple[float, ...]) -> None:
    d, w = solve(strategy, jacobian)
    assert w.tolist() == pytest.approx(wanted, abs=1.5e-6)
    torch.testing.assert_close(d, torch.tensor(wanted).double() @ jacobian, rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_every_task_gains_the_same_share_of_its_weight(seed: int) -> None:
    jacobian = random_jacobian(seed, 5, 8)
    d, w = solve(NashMTL(5, max_norm=None), jacobian)
    torch.testing.assert_close(w * (jacobian @ d), torch.ones(5).double(), rtol=1e-6, atol=0)
    assert d.norm() == pytest.approx(math.sqrt(5))
    for alpha in (0.5, 2.0, 5.0):
        d, w = solve(FairGrad(5, alpha=alpha, max_norm=None), jacobian)
        torch.testing.assert_close(jacobian @ d, w ** (-1 / alpha), rtol=1e-6, atol=0)


def test_clipping() -> None:
    long, w = solve(NashMTL(3, max_norm=None), J3)
    for max_norm in (0.5, 1.0):
        d, clipped = solve(NashMTL(3, max_norm=max_norm), J3)
        torch.testing.assert_close(d, long * (max_norm / math.sqrt(3)))
        torch.testing.assert_close(clipped, w * (max_norm / math.sqrt(3)))
    d, _ = solve(NashMTL(3, max_norm=2), J3)
    torch.testing.assert_close(d, long)
    d, _ = solve(NashMTL(3), J3)
    assert d.norm() == pytest.approx(1)


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e8])
def test_the_unit_of_a_loss_does_not_matter(scale: float) -> None:
    """Nash: to the gradient; fair weights: to the direction, where all losses change alike."""
    c = torch.tensor([1.0, scale, 1.0]).double()
    for max_norm in (1.0, None):
        d, w = solve(NashMTL(3, max_norm=max_norm), J3)
        scaled, weights = solve(NashMTL(3, max_norm=max_norm), c[:, None] * J3)
        torch.testing.assert_close(scaled, d, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(weights * c, w, rtol=1e-6, atol=0)
    for alpha in (0.5, 2.0):
        d, _ = solve(FairGrad(3, alpha=alpha, max_norm=None), J3)
        scaled, _ = solve(FairGrad(3, alpha=alpha, max_norm=None), scale * J3)
        torch.testing.assert_close(scaled / scale ** ((1 - alpha) / (1 + alpha)), d)


def test_fairness_moves_progress_to_those_who_have_least() -> None:
    jacobian = torch.tensor([[5.0, 0.0, 0.0], [-1.0, 1.0, 0.0], [0.5, 0.5, 2.0]]).double()
    least = []
    for alpha in (0.1, 0.5, 1.0, 2.0, 5.0, 10.0):
        d, _ = solve(FairGrad(3, alpha=alpha, max_norm=None), jacobian)
        least.append((jacobian @ d).min().item() / d.norm().item())
    assert least == sorted(least)


def test_special_gradients() -> None:
    g = random_jacobian(0, 1)
    d, _ = solve(NashMTL(4, max_norm=None), g.repeat(4, 1))
    torch.testing.assert_close(d, 2 * g[0] / g.norm())
    axes = torch.diag(torch.tensor([1e-4, 1.0, 30.0])).double()
    d, w = solve(NashMTL(3, max_norm=None), axes)
    torch.testing.assert_close(d, torch.ones(3).double())
    torch.testing.assert_close(w * axes.diagonal(), torch.ones(3).double())
    d, w = solve(NashMTL(1), 7 * g)
    torch.testing.assert_close(d, g[0] / g.norm())
    d, w = solve(FairGrad(1, max_norm=None), 8 * g / g.norm())
    assert w.item() == pytest.approx(8 ** (-4 / 3))


@pytest.mark.parametrize("strategy", [NashMTL, FairGrad])
def test_a_task_without_gradient(strategy: Any) -> None:
    """The others train as without it; alone it stops nothing and nothing is made up."""
    jacobian = J3.clone()
    jacobian[1] = 0
    d, w = solve(strategy(3), jacobian)
    alone, others = solve(strategy(2), J3[[0, 2]])
    torch.testing.assert_close(d, alone)
    torch.testing.assert_close(w[[0, 2]], others)
    assert w[1] == pytest.approx(others.mean().item())
    d, w = solve(strategy(3), torch.zeros(3, 4).double())
    assert d.tolist() == [0] * 4
    assert w.tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("strategy", [NashMTL, FairGrad])
def test_opposed_gradients(strategy: Any) -> None:
    """No finite weights are fair to them: a bound holds, and what they agree on goes on."""
    g = torch.tensor([1.0, 2.0, 0.0]).double()
    d, w = solve(strategy(2), torch.stack([g, -g]))
    assert w.isfinite().all()
    assert d.norm() <= 1e-10 * (w @ torch.full((2,), 5**0.5).double())
    across = torch.tensor([0.0, 0.0, 1.0]).double()
    d, w = solve(strategy(3, max_norm=None), torch.stack([g, -g, across]))
    torch.testing.assert_close(d, across, rtol=1e-6, atol=1e-6)
    nearly = torch.stack([g, -g + 1e-2 * across])
    d, _ = solve(strategy(2), nearly)
    assert (nearly @ d > 0).all()
    assert d.norm() == pytest.approx(1)


def test_gradients_too_short_for_single_precision() -> None:
    """Their weights stop at 1e38."""
    theta = torch.zeros(2, requires_grad=True)
    rows = 1e-42 * torch.tensor([[2.0, 1.0], [-1.0, 3.0]])
    strategy = NashMTL(2)
    strategy([row @ theta + 1 for row in rows]).backward()
    assert strategy.weights.isfinite().all()
    assert theta.grad is not None
    assert theta.grad.isfinite().all()


def test_it_is_no_equal_weighting() -> None:
    """Peers without their solver fall back to it, and say nothing."""
    jacobian = torch.tensor([[10.0, 1.0, 0.0], [-0.1, 0.1, 0.0], [0.0, 1.0, 1.0]]).double()
    for strategy in (NashMTL(3), FairGrad(3)):
        _, w = solve(strategy, jacobian)
        assert w.max() > 2 * w.min()


@pytest.mark.parametrize(("strategy", "weighted"), [(NashMTL, True), (FairGrad, False)])
def test_heads_by_default(strategy: Any, weighted: bool) -> None:
    trunk, heads = nn.Parameter(torch.ones(3)), [nn.Parameter(torch.ones(3)) for _ in range(2)]
    rows = torch.tensor([[1.0, 2.0, 0.0], [-1.0, 1.0, 5.0]])
    losses = [(row * trunk * head).sum() for row, head in zip(rows, heads, strict=True)]
    fair = strategy(2)
    fair(losses).backward()
    for head, row, w in zip(heads, rows, fair.weights, strict=True):
        assert head.grad is not None
        torch.testing.assert_close(head.grad, row * w if weighted else row)


@given(st.integers(0, 10**6), st.integers(2, 7), st.floats(-4, 4))
def test_no_task_is_hurt(seed: int, tasks: int, decades: float) -> None:
    jacobian = random_jacobian(seed, tasks, 9)
    jacobian[0] *= 10**decades
    for strategy in (NashMTL(tasks), FairGrad(tasks), FairGrad(tasks, alpha=5)):
        d, _ = solve(strategy, jacobian)
        assert (jacobian @ d > 0).all()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"alpha": 0}, "alpha"),
        ({"alpha": 11}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"max_norm": 0}, "max_norm"),
        ({"max_norm": -1.0}, "max_norm"),
    ],
)
def test_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(OptionError, match=named):
        FairGrad(2, **options)
