from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlweight import Krum, OptionError
from tests.contract.strategies import solve


def rows(seed: int, tasks: int = 5, numbers: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, numbers, generator=generator, dtype=torch.float64)


def scores(jacobian: Tensor, f: int, power: int = 2) -> Tensor:
    n = len(jacobian)
    found = []
    for i in range(n):
        others = sorted((jacobian[i] - jacobian[j]).norm().item() for j in range(n) if j != i)
        found.append(sum(distance**power for distance in others[: n - f - 2]))
    return torch.tensor(found)


@settings(max_examples=100)
@given(st.integers(0, 10**6), st.integers(4, 9), st.data())
def test_the_lowest_scores_are_averaged(seed: int, tasks: int, data: st.DataObject) -> None:
    f = data.draw(st.integers(0, tasks - 4))  # with two neighbours at least, nothing ties
    m = data.draw(st.integers(1, tasks))
    jacobian = rows(seed, tasks)
    d, w = solve(Krum(tasks, byzantine=f, select=m), jacobian)
    best = scores(jacobian, f).argsort()[:m]
    assert (w > 0).sum() == m
    assert w[best].tolist() == pytest.approx([1 / m] * m)
    torch.testing.assert_close(d, jacobian[best].mean(0), rtol=1e-6, atol=1e-6)


def test_distances_are_squared() -> None:
    """A published implementation adds up the distances themselves, and picks another gradient."""
    others = 0
    for seed in range(60):
        jacobian = rows(seed, 6, 3)
        _, w = solve(Krum(6, byzantine=1), jacobian)
        assert w.argmax() == scores(jacobian, 1).argmin()
        others += int(w.argmax() != scores(jacobian, 1, power=1).argmin())
    assert others > 3


def test_an_outlier_is_never_picked() -> None:
    for seed in range(20):
        jacobian = rows(seed)
        jacobian[seed % 5] *= 1e3
        for strategy in (Krum(5), Krum(5, byzantine=1, select=4), Krum(5, byzantine=2)):
            _, w = solve(strategy, jacobian)
            assert w[seed % 5] == 0
            assert w.sum().item() == pytest.approx(1)


def test_ties_share() -> None:
    jacobian = torch.tensor([[0.0, 5.0], [1.0, 0.0], [1.1, 0.0]]).double()
    _, w = solve(Krum(3), jacobian)
    assert w.tolist() == pytest.approx([0, 0.5, 0.5])
    _, w = solve(Krum(3, select=2), jacobian)
    assert w.tolist() == pytest.approx([0, 0.5, 0.5])
    _, w = solve(Krum(5, select=2), torch.ones(5, 3).double())
    assert w.tolist() == pytest.approx([0.2] * 5)


def test_few_tasks() -> None:
    for tasks in (1, 2):
        _, w = solve(Krum(tasks), rows(0, tasks))
        assert w.tolist() == [1 / tasks] * tasks
    strategy = Krum(6, byzantine=3)
    jacobian = rows(0, 6)
    theta = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    strategy({str(i): jacobian[i] @ theta + 1 for i in range(4)}, shared=[theta])
    _, w = solve(Krum(4, byzantine=1), jacobian[:4])
    assert strategy.weights.tolist() == pytest.approx([*w.tolist(), 0, 0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"byzantine": 2}, "byzantine.*2.*5.*4"),
        ({"byzantine": -1}, "byzantine.*-1"),
        ({"select": 5}, "select.*5.*4"),
        ({"select": 0}, "select.*0"),
    ],
)
def test_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        Krum(4, **options)
