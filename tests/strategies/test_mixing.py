from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import mtlweight
from mtlweight import (
    FMTL,
    DoReMi,
    OnlineMixing,
    OptionError,
    PiKE,
    QuotaCarry,
    QuotaSampler,
    Strategy,
    VarianceAware,
    quotas,
    task_means,
)
from tests.contract.strategies import plane, same_bits, snapshot, solve

J = torch.eye(3).double()
loss = st.floats(-5, 5)


def step(strategy: Strategy, values: Any, jacobian: Tensor = J) -> list[float]:
    """Takes a step with a mapping from task name, or a list; returns the weights."""
    theta, losses = plane(jacobian, list(values.values()) if isinstance(values, dict) else values)
    given: Any = dict(zip(values, losses, strict=True)) if isinstance(values, dict) else losses
    strategy(given).backward()
    assert theta.grad is not None
    weights: list[float] = strategy.weights.tolist()
    return weights


# --- DoReMi --------------------------------------------------------------------------------------


def slow_doremi(
    excesses: list[list[float]], eta: float = 1.0, c: float = 1e-4
) -> list[list[float]]:
    """The authors' recursion, in plain arithmetic."""
    alpha = [1 / len(excesses[0])] * len(excesses[0])
    found = []
    for excess in excesses:
        raised = [a * math.exp(eta * max(e, 0.0)) for a, e in zip(alpha, excess, strict=True)]
        alpha = [(1 - c) * a / sum(raised) + c / len(alpha) for a in raised]
        found.append(alpha)
    return found


def test_doremi_canonical() -> None:
    strategy = DoReMi(3, [1.5, 1.0, 0.7])
    got = step(strategy, [2.0, 1.0, 0.5])  # an excess of (.5, 0, -.2)
    assert got == pytest.approx([0.451851, 0.274075, 0.274075], abs=1e-6)
    strategy.end_epoch()
    assert strategy.weights.tolist() == pytest.approx(got)


@settings(max_examples=40)
@given(st.lists(st.lists(loss, min_size=3, max_size=3), min_size=1, max_size=30))
def test_doremi_is_the_authors_recursion(excesses: list[list[float]]) -> None:
    references = [1.0, 2.0, 3.0]
    strategy = DoReMi(3, references, learning_rate=0.3, smoothing=0.01)
    wanted = slow_doremi(excesses, eta=0.3, c=0.01)
    for excess, alpha in zip(excesses, wanted, strict=True):
        got = step(strategy, [e + r for e, r in zip(excess, references, strict=True)])
        assert got == pytest.approx(alpha, rel=1e-4)
    strategy.end_epoch()
    means = [sum(column) / len(wanted) for column in zip(*wanted, strict=True)]
    assert strategy.weights.tolist() == pytest.approx(means, rel=1e-4)  # what the authors publish
    assert strategy.weights.sum().item() == pytest.approx(1, abs=1e-6)


def test_doremi_leaves_no_task_without_a_share() -> None:
    strategy = DoReMi(4, [0.0] * 4)
    for _ in range(300):
        got = step(strategy, [1.0, 0.0, 0.0, 0.0], torch.eye(4).double())
    assert min(got) >= 1e-4 / 4 * (1 - 1e-5)
    for _ in range(30):
        got = step(strategy, [0.0, 0.0, 0.0, 1.0], torch.eye(4).double())
    assert got[3] > 0.99  # and none is given up for good


def test_doremi_without_excess_stays_uniform() -> None:
    strategy = DoReMi(3, {"0": 3.0, "1": 2.0, "2": 4.0})
    for _ in range(5):
        assert step(strategy, [2.0, 1.0, -3.0]) == pytest.approx([1 / 3] * 3)


def test_doremi_with_tasks_that_alternate() -> None:
    """One task a batch: each step has weight one, and yet the shares learn."""
    strategy = DoReMi(["a", "b"], [0.0, 0.0])
    for _ in range(20):
        assert step(strategy, {"a": 0.2}, J[:1]) == pytest.approx([1, 0])
        assert step(strategy, {"b": 0.1}, J[:1]) == pytest.approx([0, 1])
    strategy.end_epoch()
    after = strategy.log_shares.softmax(0)
    assert after[0].item() == pytest.approx(1 / (1 + math.exp(-2)), abs=1e-3)  # 20 x .1 apart
    assert 0.5 < strategy.weights[0] < after[0]  # the mean over the epoch
    assert strategy.weights.sum().item() == pytest.approx(1)


def test_doremi_leaves_absent_tasks_alone() -> None:
    strategy = DoReMi(3, [0.0] * 3)
    step(strategy, [0.3, 0.2, 0.1])
    before = strategy.log_shares.clone()
    step(strategy, {"1": 0.7}, J[:1])
    after = strategy.log_shares
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert (after[1] - before[1]).item() == pytest.approx(0.7, abs=1e-3)


def test_doremi_with_the_references_of_a_batch() -> None:
    """Subtracted from the losses, or set before the step: the same."""
    one, other = DoReMi(3, [0.0] * 3), DoReMi(3, [9.0] * 3)
    for i in range(6):
        references = [0.5 + 0.1 * i, 1.0, 0.2 * i]
        losses = torch.tensor([1.0, 1.3 - 0.2 * i, 0.9]).double()
        d, w = solve(one, J, losses - torch.tensor(references).double())
        other.set_references(dict(zip("021", (references[j] for j in (0, 2, 1)), strict=True)))
        same_d, same_w = solve(other, J, losses)
        torch.testing.assert_close(same_w, w, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(same_d, d, rtol=1e-5, atol=1e-7)
    other.set_references({"1": 2.5})
    assert other.references.tolist() == pytest.approx([1.0, 2.5, 1.0])


def test_doremi_keeps_its_references_in_its_state() -> None:
    strategy = DoReMi(2, [1.0, 2.0])
    strategy.set_references([3.0, 4.0])
    fresh = DoReMi(2, [1.0, 2.0])
    fresh.load_state_dict(strategy.state_dict())
    assert fresh.references.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("bad", [{"x": 1.0}, [1.0, math.nan, 2.0], {"0": "much"}, [1.0]])
def test_doremi_refuses_bad_references(bad: Any) -> None:
    with pytest.raises(OptionError, match="references"):
        DoReMi(3, bad)
    strategy = DoReMi(3, [1.0, 2.0, 3.0])
    before = snapshot(strategy)
    with pytest.raises((ValueError, TypeError), match="references"):
        strategy.set_references(bad)
    assert same_bits(snapshot(strategy), before)


def test_doremi_survives_a_spike() -> None:
    strategy = DoReMi(3, [0.0] * 3)
    step(strategy, {"0": 1e18, "1": 1.0}, J[:2])
    for _ in range(40):
        got = step(strategy, [0.0, 1.0, 0.0])
    assert got[1] > 0.99


# --- OnlineMixing --------------------------------------------------------------------------------


class SlowExp3:
    """The authors' updater, in plain arithmetic, for any number of tasks in a step."""

    def __init__(self, tasks: int) -> None:
        self.rewards = [0.0] * tasks
        self.p = [1 / tasks] * tasks
        self.epsilon = 1 / tasks
        self.t = 0

    def update(self, losses: dict[int, float]) -> None:
        for i, value in losses.items():
            self.rewards[i] += value / 10 / self.p[i]
        self.t += 1
        n, before = len(self.p), self.epsilon
        self.epsilon = min(1 / n, math.sqrt(math.log(n) / (n * self.t)))
        powers = [math.exp(r * before) for r in self.rewards]
        self.p = [(1 - n * self.epsilon) * x / sum(powers) + self.epsilon for x in powers]


@settings(max_examples=40)
@given(
    st.lists(
        st.dictionaries(st.integers(0, 2), st.floats(0, 8), min_size=1), min_size=1, max_size=40
    )
)
def test_online_mixing_is_exp3(steps: list[dict[int, float]]) -> None:
    strategy, slow = OnlineMixing(3), SlowExp3(3)
    for values in steps:
        got = step(strategy, {str(i): values[i] for i in sorted(values)}, J[: len(values)])
        here = sum(slow.p[i] for i in values)
        wanted = [slow.p[i] / here if i in values else 0.0 for i in range(3)]
        assert got == pytest.approx(wanted, rel=1e-4, abs=1e-7)
        slow.update(values)
        assert strategy.probabilities().tolist() == pytest.approx(slow.p, rel=1e-4)
    strategy.end_epoch()
    assert strategy.weights.tolist() == pytest.approx(slow.p, rel=1e-4)
    assert strategy.weights.sum().item() == pytest.approx(1, abs=1e-6)


def test_online_mixing_explores() -> None:
    strategy = OnlineMixing(3)
    for t, wanted in [(0, 1 / 3), (1, 1 / 3), (3, 1 / 3), (4, 0.302574), (1000, 0.019137)]:
        assert strategy.exploration(t) == pytest.approx(wanted, abs=1e-6)
    assert OnlineMixing(1).exploration(5) == 0
    for _ in range(200):
        step(strategy, {"0": 50.0}, J[:1])  # the others are never seen
    strategy.end_epoch()
    least = strategy.exploration(200)
    assert strategy.weights.tolist() == pytest.approx([1 - 2 * least, least, least], rel=1e-4)


def test_online_mixing_with_every_task_in_every_batch() -> None:
    """The division by p brakes: shares settle near the losses' proportions, not at one task."""
    strategy = OnlineMixing(3)
    for _ in range(1000):
        got = step(strategy, [1.0, 2.0, 3.0])
    assert got == pytest.approx([1 / 6, 2 / 6, 3 / 6], abs=0.03)


def test_online_mixing_survives_a_spike() -> None:
    strategy = OnlineMixing(2)
    for values in [[1.0, 1.0]] * 10 + [[1e15, 1.0]] + [[1.0, 1.0]] * 400:
        got = step(strategy, values, J[:2])
    assert got == pytest.approx([0.5, 0.5], abs=0.05)


@pytest.mark.parametrize("build", [lambda n: DoReMi(n, [0.5] * n), OnlineMixing])
def test_the_only_task_is_trained_plainly(build: Any) -> None:
    strategy = build(1)
    for value in (2.0, 0.0, -1.0):
        assert step(strategy, [value], J[:1]) == [1.0]
    strategy.end_epoch()
    assert strategy.weights.tolist() == [1.0]


@pytest.mark.parametrize("build", [lambda n: DoReMi(n, [0.5] * n), OnlineMixing])
def test_they_are_not_scale_invariant_and_may_hurt(build: Any) -> None:
    """What the table of properties says."""
    jacobian = torch.tensor([[1.0, 0.0], [-3.0, 1.0]]).double()
    directions = []
    for c in (1.0, 10.0):
        strategy = build(2)
        rows = jacobian * torch.tensor([[c], [1.0]])
        for _ in range(20):
            d, _ = solve(strategy, rows, [c, 1.0])
        directions.append(d / d.norm())
        if c == 1.0:
            assert (rows @ d).min() < 0
    assert not torch.allclose(directions[0], directions[1], atol=0.05)


# --- spent on data -------------------------------------------------------------------------------


class Samples(torch.utils.data.Dataset[tuple[Tensor, Tensor, int]]):
    """Regression tasks on one input, each with a noise of its own."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        generator = torch.Generator().manual_seed(5)
        self.tasks = [task for task, size in enumerate(sizes) for _ in range(size)]
        self.x = torch.randn(len(self.tasks), 4, generator=generator)
        scale = 1 + torch.tensor(self.tasks)[:, None]
        self.y = scale * (self.x[:, :1] + torch.randn(len(self.tasks), 1, generator=generator))

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, key: int) -> tuple[Tensor, Tensor, int]:
        return self.x[key], self.y[key], self.tasks[key]


MIXERS: dict[str, Callable[[], Strategy]] = {
    "fmtl": lambda: FMTL(3),
    "doremi": lambda: DoReMi(3, [0.3] * 3),
    "online_mixing": lambda: OnlineMixing(3),
    "pike": lambda: PiKE(3, every=3),
    "variance_aware": lambda: VarianceAware(3),
}


@pytest.mark.parametrize("name", MIXERS)
def test_mixing_drives_the_data(name: str) -> None:
    """Losses in, quotas out, to the sample; the network's gradient is that of the plain mean."""
    strategy = MIXERS[name]()
    assert type(strategy) is mtlweight.available()[name]
    data = Samples((50, 30, 40))
    sampler = QuotaSampler(data.tasks, num_samples=90, batch_size=15, seed=1)
    loader = torch.utils.data.DataLoader(data, batch_sampler=sampler)
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    carry, weights = QuotaCarry(3), torch.ones(3)
    found = set()
    for interval in range(5):
        wanted = quotas(weights, 90, 1, carry).tolist()
        assert sampler.quotas.tolist() == wanted
        drawn: Counter[int] = Counter()
        for x, y, tasks in sampler.track(loader):
            drawn.update(tasks.tolist())
            counts = {str(t): n for t, n in Counter(tasks.tolist()).items()}
            sample_losses = (network(x) - y).square().mean(1)
            strategy(task_means(sample_losses, tasks), counts=counts)
            optimizer.zero_grad()
            assert all(p.grad is None for p in network.parameters())
            plain = torch.autograd.grad(
                sample_losses.mean(), list(network.parameters()), retain_graph=True
            )
            sample_losses.mean().backward()
            for parameter, gradient in zip(network.parameters(), plain, strict=True):
                torch.testing.assert_close(parameter.grad, gradient)
            optimizer.step()
        assert [drawn[task] for task in range(3)] == wanted
        assert sum(wanted) == 90
        strategy.end_epoch({"0": 0.9, "1": 0.7 + 0.01 * interval, "2": 0.4})
        weights = strategy.weights
        assert weights.sum().item() == pytest.approx(1, abs=1e-6)
        assert (weights > 0).all()
        sampler.set_weights(weights)
        found.add(tuple(wanted))
    assert len(found) > 1, "the quotas never moved"
