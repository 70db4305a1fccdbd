from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlweight import AlignedMTL, OptionError
from tests.contract.strategies import solve

J3 = torch.tensor([[3, 1, 0, 0], [-1, 2, 1, 0], [0, -1, 2, 2]], dtype=torch.float64)
J2 = torch.tensor([[1, 0], [-1, 1]], dtype=torch.float64)
WANTED: dict[str, tuple[float, ...]] = {
    "min": (0.863481, 1.046355, 0.849044),
    "median": (1.048931, 1.271080, 1.031393),
    "rmse": (1.039818, 1.260038, 1.022433),
}


def rows(seed: int, tasks: int = 3, numbers: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, numbers, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("scale", WANTED)
def test_canonical_weights(scale: Any) -> None:
    _, w = solve(AlignedMTL(3, scale=scale, preference=[1, 1, 1]), J3)
    assert w.tolist() == pytest.approx(WANTED[scale], abs=1.5e-6)
    _, w = solve(AlignedMTL(3, scale=scale), J3)
    assert (3 * w).tolist() == pytest.approx(WANTED[scale], abs=4e-6)


def test_two_tasks() -> None:
    _, w = solve(AlignedMTL(2, preference=[1, 1]), J2)
    assert w.tolist() == pytest.approx([1.105573, 0.829180], abs=1.5e-6)


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_what_it_adds_up_is_orthogonal_and_of_one_length(seed: int, tasks: int) -> None:
    jacobian = rows(seed, tasks, 9)
    gram = jacobian @ jacobian.T
    aligned = torch.stack(
        [
            AlignedMTL(tasks, preference=row).weigh(gram, torch.ones(tasks)) @ jacobian
            for row in torch.eye(tasks).double()
        ]
    )
    least = torch.linalg.eigvalsh(gram)[0]
    torch.testing.assert_close(
        aligned @ aligned.T, least * torch.eye(tasks).double(), rtol=1e-8, atol=1e-8
    )


def test_orthogonal_gradients_are_as_long_as_the_shortest() -> None:
    jacobian = torch.diag(torch.tensor([3.0, 0.5, 20.0])).double()
    d, _ = solve(AlignedMTL(3, preference=[1, 1, 1]), jacobian)
    assert d.tolist() == pytest.approx([0.5] * 3)


@pytest.mark.parametrize("noise", [0.0, 1e-15, 1e-7])
def test_gradients_that_ought_to_be_equal(noise: float) -> None:
    """What rounding leaves between them must not be the length of the step."""
    jacobian = rows(0, 1).repeat(3, 1)
    jacobian += noise * rows(1)
    d, _ = solve(AlignedMTL(3, preference=[1, 1, 1]), jacobian)
    torch.testing.assert_close(d, 3 * jacobian.mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("wide", [True, False])
def test_gradients_that_depend_on_each_other(seed: int, wide: bool) -> None:
    """In single precision, and their products too: rounding is not the length of the step."""
    generator = torch.Generator().manual_seed(seed)
    two = torch.randn(2, 10**4, generator=generator)
    jacobian = torch.stack([two[0], two[1], two[0] + two[1], 3 * two[0]])
    exact = jacobian.double()
    gram = exact @ exact.T if wide else (jacobian @ jacobian.T).double()
    weights = AlignedMTL(4).weigh(gram, torch.ones(4).double())
    assert (weights @ exact).norm() > 0.1 * exact.norm(dim=1).min()


def test_a_short_gradient_beside_equal_ones() -> None:
    noise = 1e-7 * torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]).double()
    jacobian = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1e-6]]).double()
    gram = jacobian @ jacobian.T + noise
    d = AlignedMTL(3, preference=[1, 1, 1]).weigh(gram, torch.ones(3).double()) @ jacobian
    assert d.tolist() == pytest.approx([2**0.5 * 1e-6, 1e-6], rel=1e-3)


def test_a_short_gradient_is_no_rounding() -> None:
    jacobian = torch.diag(torch.tensor([1.0, 1e-6, 1.0])).double()
    d, _ = solve(AlignedMTL(3, preference=[1, 1, 1]), jacobian)
    assert d.tolist() == pytest.approx([1e-6] * 3)


def test_a_task_without_gradient() -> None:
    jacobian = torch.cat([J3, torch.zeros(1, 4).double()])
    d, w = solve(AlignedMTL(4, preference=[1, 1, 1, 1]), jacobian)
    torch.testing.assert_close(d, solve(AlignedMTL(3, preference=[1, 1, 1]), J3)[0])
    assert w[3].item() == pytest.approx(w[:3].mean().item())
    _, w = solve(AlignedMTL(3, preference=[1, 2, 3]), 0 * J3)
    assert w.tolist() == [1.0, 2.0, 3.0]


def test_preference() -> None:
    names = ("a", "b", "c")
    d, _ = solve(AlignedMTL(names, preference={"c": 3, "a": 1, "b": 2}), J3)
    parts = [
        solve(AlignedMTL(names, preference=unit), J3)[0]
        for unit in ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0])
    ]
    torch.testing.assert_close(d, parts[0] + 2 * parts[1] + 3 * parts[2], rtol=1e-6, atol=1e-6)
    theta = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    strategy = AlignedMTL(names, preference=[1.0, 2.0, 3.0])
    strategy({"a": J3[0] @ theta + 1, "c": J3[2] @ theta + 1}, shared=[theta])
    _, two = solve(AlignedMTL(2, preference=[1.0, 3.0]), J3[[0, 2]])
    assert strategy.weights.tolist() == pytest.approx([two[0].item(), 0, two[1].item()])


@pytest.mark.parametrize(
    ("preference", "words"),
    [([1, -2, 1], "'b'.*-2"), ([0, 0, 0], "zero"), ([1, 2], r"\[2\]"), ({"a": 1, "b": 1}, "'c'")],
)
def test_a_preference_is_refused(preference: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        AlignedMTL(("a", "b", "c"), preference=preference)
