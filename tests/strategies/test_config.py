from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlweight import IMTLG, ConFIG
from tests.contract.strategies import solve

J3 = torch.tensor([[3, 1, 0, 0], [-1, 2, 1, 0], [0, -1, 2, 2]], dtype=torch.float64)
J2 = torch.tensor([[1, 0], [-1, 1]], dtype=torch.float64)


def rows(seed: int, tasks: int = 3, numbers: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, numbers, generator=generator, dtype=torch.float64)


def cosines(jacobian: Tensor, d: Tensor) -> Tensor:
    found: Tensor = jacobian @ d / (jacobian.norm(dim=1) * d.norm())
    return found


def test_canonical_weights() -> None:
    d, w = solve(ConFIG(3), J3)
    assert w.tolist() == pytest.approx([0.969282, 1.147023, 0.912336], abs=1.5e-6)
    assert d.tolist() == pytest.approx([1.760824, 2.350992, 2.971694, 1.824671], abs=2e-6)
    assert cosines(J3, d).tolist() == pytest.approx([0.529437] * 3, abs=1.5e-6)
    _, w = solve(ConFIG(2), J2)
    assert w.tolist() == pytest.approx([1.207107, 0.853553], abs=1.5e-6)


def test_orthonormal_and_identical_gradients_add_up() -> None:
    for jacobian in (torch.eye(3).double(), rows(0, 1).repeat(4, 1)):
        d, _ = solve(ConFIG(len(jacobian)), jacobian)
        torch.testing.assert_close(d, jacobian.sum(0))


LENGTHS: dict[str, Any] = {
    "projection": lambda n: n,
    "minimum": lambda n: n.min(),
    "harmonic": lambda n: 1 / (1 / n).mean(),
    "geometric": lambda n: n.log().mean().exp(),
    "arithmetic": lambda n: n.mean(),
    "maximum": lambda n: n.max(),
}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("still", [False, True])
def test_lengths(length: Any, still: bool) -> None:
    jacobian = rows(3) * torch.tensor([[1.0], [10.0], [0.1]]).double()
    given_rows = torch.cat([jacobian, torch.zeros(1, 6)]) if still else jacobian
    d, w = solve(ConFIG(len(given_rows), length=length), given_rows)
    wanted = (LENGTHS[length](jacobian.norm(dim=1)) * cosines(jacobian, d)).sum()
    assert d.norm().item() == pytest.approx(wanted.item(), rel=1e-6)
    if still:
        assert w[3].item() == pytest.approx(w[:3].mean().item())


@settings(max_examples=100)
@given(st.integers(0, 10**6), st.integers(2, 6), st.lists(st.integers(-4, 4), min_size=6))
def test_the_same_angle_to_every_gradient(seed: int, tasks: int, exponents: list[int]) -> None:
    scales = 10.0 ** torch.tensor(exponents[:tasks], dtype=torch.float64)
    jacobian = scales[:, None] * rows(seed, tasks, 9)
    gram, losses = jacobian @ jacobian.T, torch.ones(tasks).double()
    d = ConFIG(tasks).weigh(gram, losses) @ jacobian
    c = cosines(jacobian, d)
    assert (c > 0).all()
    assert c.tolist() == pytest.approx([c[0].item()] * tasks, rel=1e-6)
    assert d.norm().item() == pytest.approx((c * jacobian.norm(dim=1)).sum().item())
    unscaled = ConFIG(tasks).weigh(gram / scales[:, None] / scales, losses) / scales @ jacobian
    torch.testing.assert_close(unscaled / unscaled.norm(), d / d.norm(), rtol=1e-6, atol=1e-6)
    impartial = IMTLG(tasks).weigh(gram, losses) @ jacobian
    torch.testing.assert_close(impartial / impartial.norm(), d / d.norm(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("length", LENGTHS)
def test_exact_opposites_cancel(length: Any) -> None:
    for jacobian in (
        torch.tensor([[1.0, 2.0], [-3.0, -6.0]]).double(),
        torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -2.0]]).double(),
    ):
        d, w = solve(ConFIG(len(jacobian), length=length), jacobian)
        assert d.abs().max() < 1e-6
        assert (w > 0).all()
        assert w.max() < 10


def test_no_gradient_at_all() -> None:
    d, w = solve(ConFIG(3), 0 * J3)
    assert w.tolist() == [1.0] * 3
    assert not d.any()
