from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlweight import IMTL, IMTLG, IMTLL, ConFIG
from tests.contract.strategies import Network, batch, gradient_now, gradient_rows, losses_of, solve

J3 = torch.tensor([[3, 1, 0, 0], [-1, 2, 1, 0], [0, -1, 2, 2]], dtype=torch.float64)
J2 = torch.tensor([[1, 0], [-1, 1]], dtype=torch.float64)


def rows(seed: int, tasks: int = 3, numbers: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, numbers, generator=generator, dtype=torch.float64)


def projections(jacobian: Tensor, d: Tensor) -> Tensor:
    found: Tensor = jacobian @ d / jacobian.norm(dim=1)
    return found


def test_canonical_weights() -> None:
    d, w = solve(IMTLG(3), J3)
    assert w.tolist() == pytest.approx([0.320039, 0.378725, 0.301236], abs=1.5e-6)
    assert projections(J3, d).tolist() == pytest.approx([0.797029] * 3, abs=1.5e-6)
    _, w = solve(IMTLG(2), J2)
    assert w.tolist() == pytest.approx([0.585786, 0.414214], abs=1.5e-6)


@pytest.mark.parametrize("angle", [0.0, 1e-7, 1e-3, 1.0, 2.0, 3.0, math.pi])
def test_two_tasks_whatever_the_angle(angle: float) -> None:
    jacobian = torch.tensor(
        [[2.0, 0.0], [0.5 * math.cos(angle), 0.5 * math.sin(angle)]], dtype=torch.float64
    )
    _, w = solve(IMTLG(2), jacobian)
    assert w.tolist() == pytest.approx([0.2, 0.8], rel=1e-5)


def test_identical_gradients() -> None:
    """A published implementation inverts a singular matrix here."""
    for jacobian in (rows(1, 1).repeat(4, 1), torch.stack([J3[0], J3[0], J3[1]])):
        d, w = solve(IMTLG(len(jacobian)), jacobian)
        p = projections(jacobian, d)
        assert p.tolist() == pytest.approx([p[0].item()] * len(jacobian), rel=1e-6)
        assert w.sum().item() == pytest.approx(1)
        assert w[0].item() == pytest.approx(w[1].item())


def test_almost_identical_gradients_are_taken_as_one() -> None:
    exact, close = J3[[0, 0, 2]].clone(), J3[[0, 0, 2]].clone()
    close[1] += 1e-7 * rows(0, 1, 4)[0]
    d, w = solve(IMTLG(3), close)
    assert w.abs().max() < 1
    torch.testing.assert_close(d, solve(IMTLG(3), exact)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_products_of_single_precision(seed: int) -> None:
    """What they round is not taken for an angle between gradients that are equal."""
    two = torch.randn(2, 10**4, generator=torch.Generator().manual_seed(seed))
    jacobian = torch.stack([two[0], two[1], 2 * two[0], two[1] + 1e-4 * two[0]])
    gram = (jacobian @ jacobian.T).double()
    for strategy in (IMTLG(4), ConFIG(4)):
        w = strategy.weigh(gram, torch.ones(4).double())
        assert (w > 0).all()
        p = projections(jacobian.double(), w @ jacobian.double())
        assert p.tolist() == pytest.approx([p[0].item()] * 4, rel=1e-3)


def test_exact_opposites_cancel() -> None:
    d, w = solve(IMTLG(3), torch.tensor([[1.0, 0.0], [-2.0, 0.0], [1.0, 0.0]]).double())
    torch.testing.assert_close(w.sum(), torch.tensor(1.0).double())
    d, w = solve(IMTLG(2), torch.tensor([[1.0, 0.0], [-2.0, 0.0]]).double())
    assert w.tolist() == pytest.approx([2 / 3, 1 / 3])
    assert d.abs().max() < 1e-7


def test_a_step_that_the_paper_takes_uphill() -> None:
    """The short gradient between two others: the paper's weights sum to one, and climb all."""
    middle = 0.01 * torch.tensor([1.0, 0.0, 0.05])
    jacobian = torch.stack(
        [torch.tensor([1.0, 0.3, 0.0]), torch.tensor([1.0, -0.3, 0.0]), middle]
    ).double()
    gram = jacobian @ jacobian.T
    v = torch.linalg.solve(gram, gram.diagonal().sqrt())
    assert v.sum() < 0
    d, w = solve(IMTLG(3), jacobian)
    p = projections(jacobian, d)
    assert p[0] > 0
    assert p.tolist() == pytest.approx([p[0].item()] * 3, rel=1e-4)
    assert d.norm().item() == pytest.approx(jacobian.norm(dim=1).max().item(), rel=1e-5)
    assert w.sum() < 1


@settings(max_examples=100)
@given(st.integers(0, 10**6), st.integers(2, 6), st.lists(st.integers(-4, 4), min_size=6))
def test_equal_projections_that_lower_every_loss(
    seed: int, tasks: int, exponents: list[int]
) -> None:
    scales = 10.0 ** torch.tensor(exponents[:tasks], dtype=torch.float64)
    jacobian = scales[:, None] * rows(seed, tasks, 9)
    weights = IMTLG(tasks).weigh(jacobian @ jacobian.T, torch.ones(tasks).double())
    d = weights @ jacobian
    p = projections(jacobian, d)
    assert (p > 0).all()
    assert (p - p.mean()).abs().max() <= 1e-5 * (weights.abs() @ jacobian.norm(dim=1))
    assert d.norm() <= jacobian.norm(dim=1).max() * (1 + 1e-9)


@pytest.mark.parametrize("scale", [1e-3, 7.0, 1e4])
@pytest.mark.parametrize("build", [IMTLG, IMTL])
@pytest.mark.parametrize("deficient", [False, True])
def test_the_scale_of_one_task_does_not_turn_the_step(
    scale: float, build: type[IMTLG], deficient: bool
) -> None:
    jacobian = rows(4, 4, 2 if deficient else 6)
    d, _ = solve(build(4), jacobian)
    jacobian[1] *= scale
    scaled, _ = solve(build(4), jacobian)
    torch.testing.assert_close(scaled / scaled.norm(), d / d.norm(), rtol=1e-5, atol=1e-5)


def test_a_task_without_gradient() -> None:
    jacobian = torch.cat([J3, torch.zeros(1, 4, dtype=torch.float64)])
    d, w = solve(IMTLG(4), jacobian)
    wanted, rest = solve(IMTLG(3), J3)
    torch.testing.assert_close(d, wanted)
    assert w[3].item() == pytest.approx(rest.mean().item())
    _, w = solve(IMTLG(3), 0 * J3)
    assert w.tolist() == pytest.approx([1 / 3] * 3)


def test_scales_are_those_of_imtl_l() -> None:
    """And the shared weights those of the scaled losses' equal projections."""
    whole, losses_only = IMTL(3, learning_rate=0.1), IMTLL(3, learning_rate=0.1)
    for step in range(5):
        present = [[0, 1, 2], [0, 2], [0, 1, 2], [1], [0, 1, 2]][step]
        values = torch.tensor([5.0, 0.1, 1.0]).double()[present]
        s = losses_only.log_scales.double()[present]
        theta = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        given_losses = {
            str(i): J3[i] @ theta + value for i, value in zip(present, values, strict=True)
        }
        losses_only(given_losses)
        whole(given_losses, shared=[theta])
        wanted = solve(IMTLG(len(present)), s.exp()[:, None] * J3[present])[1] * s.exp()
        torch.testing.assert_close(whole.weights[present].double(), wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(whole.log_scales, losses_only.log_scales)
    assert whole.log_scales[1] > 0 > whole.log_scales[0]


def test_heads_get_the_scaled_losses() -> None:
    network, strategy = Network().double(), IMTL(("a", "b", "c"), learning_rate=0.3)
    for step in range(3):
        network.zero_grad()
        factors = strategy.log_scales.double().exp()
        _, losses = losses_of(network, batch(step, dtype=torch.float64))
        own = {
            task: gradient_rows({task: losses[task]}, head.parameters())[0]
            for task, head in network.heads.items()
        }
        strategy(losses).backward()
        for factor, (task, head) in zip(factors, network.heads.items(), strict=True):
            got = gradient_now(head.parameters())
            torch.testing.assert_close(got, factor * own[task], rtol=1e-6, atol=1e-9)
    assert (factors - 1).abs().min() > 0.1
