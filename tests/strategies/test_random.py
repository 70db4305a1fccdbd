from __future__ import annotations

import pytest
import torch

from mtlweight import RLW, PCGrad
from tests.contract.strategies import solve

J = torch.eye(3)


def draws(strategy: RLW, steps: int) -> torch.Tensor:
    found = []
    for _ in range(steps):
        solve(strategy, J[: strategy.num_tasks])
        found.append(strategy.weights)
    return torch.stack(found)


def test_weights_are_equal_on_average() -> None:
    weights = draws(RLW(3, seed=1), 1500)
    torch.testing.assert_close(weights.sum(1), torch.ones(1500))
    assert (weights > 0).all()
    torch.testing.assert_close(weights.mean(0), torch.full((3,), 1 / 3), atol=0.015, rtol=0)
    # softmax of three standard normals: the spread is part of the method
    reference = torch.randn(100_000, 3).softmax(1).std(0)
    torch.testing.assert_close(weights.std(0), reference, atol=0.015, rtol=0)


def test_steps_and_tasks_are_independent() -> None:
    weights = draws(RLW(2, seed=3), 2000)[:, 0] - 0.5
    correlation = (weights[1:] * weights[:-1]).mean() / weights.square().mean()
    assert abs(correlation) < 0.08


def test_a_seed_is_a_sequence() -> None:
    assert torch.equal(draws(RLW(3, seed=5), 20), draws(RLW(3, seed=5), 20))
    assert not torch.equal(draws(RLW(3, seed=5), 20), draws(RLW(3, seed=6), 20))
    one, other = draws(RLW(3, seed=5), 20), draws(RLW(3, seed=6), 19)
    assert not torch.equal(one[1:], other), "seed s at step k+1 is seed s+1 at step k"


def test_a_resumed_run_draws_what_it_would_have_drawn() -> None:
    whole = draws(RLW(3), 10)
    first = RLW(3)
    draws(first, 4)
    second = RLW(3)
    second.load_state_dict(first.state_dict())
    assert torch.equal(draws(second, 6), whole[4:])


@pytest.mark.parametrize("present", [("0", "2"), ("1",)])
def test_present_tasks_share_what_there_is(present: tuple[str, ...]) -> None:
    strategy = RLW(3)
    theta = torch.ones(3, requires_grad=True)
    for _ in range(5):
        strategy({task: theta[int(task)] for task in present})
        assert strategy.weights.sum() == pytest.approx(1)


def test_orders_of_pcgrad_are_uniform() -> None:
    """Three gradients in mutual conflict: each of the possible results comes as often."""
    jacobian = torch.tensor([[1.0, 0.0], [-0.5, 0.9], [-0.6, -0.7]], dtype=torch.float64)
    strategy, seen = PCGrad(3), []
    for _ in range(400):
        d, _ = solve(strategy, jacobian)
        seen.append(tuple(round(x, 9) for x in d.tolist()))
    counts = [seen.count(result) for result in set(seen)]
    assert len(counts) == 8
    assert min(counts) > 25
