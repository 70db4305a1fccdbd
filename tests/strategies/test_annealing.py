from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mtlweight import LRA
from mtlweight.options import OptionError
from tests.contract.strategies import plane, solve

TASKS = ("a", "b", "c")


def jacobian(step: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(3, 7, generator=generator, dtype=torch.float64)


def test_equal_gradients() -> None:
    """The ratio is the largest entry over the mean one."""
    g = jacobian()[0]
    _, w = solve(LRA(3, beta=0), g.repeat(3, 1))
    ratio = (g.abs().max() / g.abs().mean()).item()
    assert w.tolist() == pytest.approx([1.0, ratio, ratio], rel=1e-6)


def test_the_ratios_are_averaged_from_one() -> None:
    strategy, ratios = LRA(3), [1.0, 1.0, 1.0]
    for step in range(5):
        rows = jacobian(step)
        for i in (1, 2):
            now = (rows[0].abs().max() / rows[i].abs().mean()).item()
            ratios[i] = 0.9 * ratios[i] + 0.1 * now
        d, w = solve(strategy, rows)
        assert w.tolist() == pytest.approx(ratios, rel=1e-5)
        torch.testing.assert_close(d, w @ rows, rtol=1e-6, atol=1e-7)


def test_the_main_task_by_name() -> None:
    rows = jacobian()
    _, first = solve(LRA(TASKS, beta=0), rows)
    _, last = solve(LRA(TASKS, main="c", beta=0), rows.flip(0))
    assert last.tolist() == pytest.approx(first.tolist()[::-1])
    with pytest.raises(OptionError, match=r"'d' is no task: the tasks are a, b, c"):
        LRA(TASKS, main="d")


def test_ratios_stand_still_without_a_gradient_or_the_main_task() -> None:
    strategy = LRA(TASKS, beta=0.5)
    rows = jacobian()
    _, losses = plane(rows)
    strategy(losses)
    before = strategy.ratios.clone()
    theta = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    strategy({"b": jacobian(1)[1] @ theta, "c": jacobian(1)[2] @ theta}, shared=[theta])
    assert torch.equal(strategy.ratios, before)
    assert strategy.weights.tolist() == pytest.approx([0.0, *before[1:].tolist()])
    for still, stand in ((0, (1, 2)), (1, (1,))):
        rows = jacobian(2)
        rows[still] = 0
        before = strategy.ratios.clone()
        solve(strategy, rows)
        moved = strategy.ratios != before
        assert not moved[list(stand)].any()
        assert moved[2] == (still == 1)
        assert strategy.ratios[0] == 1


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e4, 1e20])
def test_the_scale_of_a_side_loss_does_not_matter(scale: float) -> None:
    rows = jacobian()
    d, _ = solve(LRA(3, beta=0), rows)
    scaled, _ = solve(LRA(3, beta=0), rows * torch.tensor([1.0, scale, 1.0])[:, None])
    torch.testing.assert_close(scaled, d, rtol=1e-5, atol=1e-6)


def test_features_are_measured_over_all_their_entries() -> None:
    rows = jacobian()
    leaf = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    features = leaf * 1.0
    strategy = LRA(3, beta=0)
    strategy([row @ features for row in rows], shared=features).backward()
    _, w = solve(LRA(3, beta=0), rows)
    torch.testing.assert_close(strategy.weights.double(), w)


def test_one_task() -> None:
    d, w = solve(LRA(1), jacobian()[:1])
    assert w.tolist() == [1.0]
    assert torch.equal(d, jacobian()[0])
