from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mtlweight import ConFIG, MConFIG, MoCo
from tests.contract.strategies import Network, batch, losses_of, plane, solve
from tests.contract.test_vectors import J3

TASKS = ("a", "b", "c")
MGDA_ON_J3 = (0.294872, 0.423077, 0.282051)


def jacobian(step: int, numbers: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(3, numbers, generator=generator, dtype=torch.float64)


def nearest(x: Tensor) -> Tensor:
    """Returns the closest point of the simplex, by bisection on the shift."""
    low, high = x.min() - 1, x.max()
    for _ in range(200):
        middle = (low + high) / 2
        if (x - middle).clamp_min(0).sum() > 1:
            low = middle
        else:
            high = middle
    return (x - low).clamp_min(0)


# --- MoCo ----------------------------------------------------------------------------------------


def test_moco_on_three_tasks() -> None:
    strategy = MoCo(3, beta=0.5, step_size=0.1)
    d, w = solve(strategy, J3)
    assert strategy.shares.tolist() == pytest.approx([0.325, 0.35, 0.325], abs=1e-6)
    assert w.tolist() == pytest.approx([0.1625, 0.175, 0.1625], abs=1e-6)
    torch.testing.assert_close(d, w @ J3, rtol=1e-6, atol=1e-7)


def test_moco_without_a_past_is_a_projected_step_of_mgda() -> None:
    strategy = MoCo(3, beta=1, beta_sigma=0, step_size=0.05, step_sigma=0)
    shares = torch.full((3,), 1 / 3).double()
    for step in range(5):
        rows = jacobian(step)
        shares = nearest(shares - 0.05 * rows @ rows.T @ shares)
        d, w = solve(strategy, rows)
        torch.testing.assert_close(w, shares, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(d, shares @ rows, rtol=1e-5, atol=1e-5)


def test_moco_ends_at_the_weights_of_mgda() -> None:
    strategy = MoCo(3, step_sigma=0.1)
    for _ in range(200):
        solve(strategy, J3)
    assert strategy.shares.tolist() == pytest.approx(MGDA_ON_J3, abs=1e-3)


def test_moco_is_its_algorithm() -> None:
    strategy = MoCo(TASKS, beta=0.8, beta_sigma=0.3, step_size=0.07, step_sigma=0.6, rho=0.2)
    shares, tracked = torch.full((3,), 1 / 3).double(), torch.zeros(3, 6).double()
    for step in range(8):
        present = [[0, 1, 2], [0, 1, 2], [0, 2], [1]][step % 4]
        rows = jacobian(step)
        beta, gamma = 0.8 / (step + 1) ** 0.3, 0.07 / (step + 1) ** 0.6
        tracked[present] += beta * (rows - tracked)[present]
        y, total = tracked[present], shares[present].sum()
        here = shares[present] / total
        here = nearest(here - gamma * (y @ y.T @ here + 0.2 * here))
        shares[present] = here * total
        theta = torch.zeros(6, dtype=torch.float64, requires_grad=True)
        strategy({TASKS[i]: rows[i] @ theta + 1 for i in present}, shared=[theta]).backward()
        assert theta.grad is not None
        torch.testing.assert_close(theta.grad, here @ y, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(strategy.shares.double(), shares, rtol=1e-5, atol=1e-6)
        wanted = torch.zeros(3).double()
        wanted[present] = beta * here
        torch.testing.assert_close(strategy.weights.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-25, 1e12, 1e25])
def test_moco_keeps_equal_tasks_equal(scale: float) -> None:
    """Large slopes that are the same for all must not drown the weights in rounding."""
    strategy = MoCo(3)
    for step in range(3):
        _, losses = plane((scale * jacobian(step)[:1]).expand(3, 6).float())
        strategy(losses)
        assert strategy.shares.tolist() == pytest.approx([1 / 3] * 3)


def test_moco_of_features_goes_by_the_step() -> None:
    strategy = MoCo(3)
    for items in (4, 6):
        leaf = torch.ones(items, 2, dtype=torch.float64, requires_grad=True)
        features = leaf * 1.0
        strategy([(1.0 + i) * features.sum() for i in range(3)], shared=features).backward()
        assert leaf.grad is not None
        w = strategy.weights
        assert w.sum().item() == pytest.approx(1)
        assert leaf.grad[0, 0].item() == pytest.approx(float(w @ torch.tensor([1.0, 2.0, 3.0])))
    assert strategy.tracked.shape == (3, 0)


# --- M-ConFIG ------------------------------------------------------------------------------------


class SlowMConFIG:
    """The algorithm in the form of the paper: pseudo-inverse of T x P, squares of gradients."""

    def __init__(self, tasks: int, beta1: float = 0.9, beta2: float = 0.999) -> None:
        self.beta1, self.beta2 = beta1, beta2
        self.m = [torch.zeros(6).double() for _ in range(tasks)]
        self.counts = [0] * tasks
        self.t = 0
        self.last, self.v = torch.zeros(6).double(), torch.zeros(6).double()

    def step(self, task: int, gradient: Tensor, present: list[int]) -> Tensor:
        self.counts[task] += 1
        self.m[task] = self.beta1 * self.m[task] + (1 - self.beta1) * gradient
        if not all(self.counts[i] for i in present):
            return torch.zeros(6).double()
        self.t += 1
        hats = torch.stack([self.m[i] / (1 - self.beta1 ** self.counts[i]) for i in present])
        units = hats / hats.norm(dim=1, keepdim=True)
        u = torch.linalg.pinv(units) @ torch.ones(len(present)).double()
        u = u / u.norm()
        m = (hats @ u).sum() * u
        now = (1 - self.beta1**self.t) * m
        pseudo = (now - self.beta1 * self.last) / (1 - self.beta1)
        self.last = now
        self.v = self.beta2 * self.v + (1 - self.beta2) * pseudo**2
        scale = (self.v / (1 - self.beta2**self.t)).sqrt()
        step: Tensor = m / (scale + 1e-8 * scale.max())
        return step


@pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.999), (0.5, 0.9), (0.0, 0.0)])
def test_m_config_is_its_algorithm(beta1: float, beta2: float) -> None:
    strategy, slow = MConFIG(3, beta1=beta1, beta2=beta2), SlowMConFIG(3, beta1, beta2)
    for step in range(12):
        rows = jacobian(step)
        wanted = slow.step(step % 3, rows[step % 3], [0, 1, 2])
        d, w = solve(strategy, rows)
        torch.testing.assert_close(d, wanted, rtol=1e-5, atol=1e-6)
        assert bool(w.any()) == (step >= 2)
        if step < 2:
            assert not d.any()


def test_m_config_reads_one_task_a_step() -> None:
    """The gradients of the others are neither needed nor taken."""
    strategy, twin = MConFIG(3), MConFIG(3)
    for step in range(7):
        rows, spoilt = jacobian(step), 100 * jacobian(step + 50)
        spoilt[step % 3] = rows[step % 3]
        d, _ = solve(strategy, rows)
        other, _ = solve(twin, spoilt)
        assert torch.equal(d, other)


def test_m_config_goes_on_where_a_task_does_not_use_what_is_shared() -> None:
    network, strategy = Network(), MConFIG(TASKS)
    for step in range(4):
        _, losses = losses_of(network, batch(step))
        losses["b"] = network.heads["b"].weight.square().sum()
        strategy(losses, shared=network.trunk.parameters()).backward()
    assert strategy.turns.tolist() == [2, 1, 1]


def test_m_config_walks_the_trunk_once_a_step() -> None:
    network, strategy = Network(), MConFIG(TASKS)
    for step in range(4):
        walks: list[int] = []
        features, losses = losses_of(network, batch(step))
        assert features.grad_fn is not None
        features.grad_fn.register_hook(lambda *_, walks=walks: walks.append(1))
        strategy(losses).backward()
        assert len(walks) == 1


def test_m_config_turns_go_to_who_waited_longest() -> None:
    strategy, slow = MConFIG(TASKS), SlowMConFIG(3)
    order: list[int] = []
    batches = [[0, 1, 2], [0, 2], [0, 1], [0, 1, 2], [0, 2], [1, 2], [0, 1, 2], [0, 1, 2]]
    for step, present in enumerate(batches):
        rows = jacobian(step)
        waits = {i: order[::-1].index(i) if i in order else 99 for i in present}
        turn = max(present, key=lambda i: (waits[i], -i))
        order.append(turn)
        wanted = slow.step(turn, rows[turn], present)
        theta = torch.zeros(6, dtype=torch.float64, requires_grad=True)
        strategy({TASKS[i]: rows[i] @ theta + 1 for i in present}, shared=[theta]).backward()
        assert theta.grad is not None
        torch.testing.assert_close(theta.grad, wanted, rtol=1e-5, atol=1e-6)
        assert strategy.turns.tolist() == [order.count(i) for i in range(3)]
    assert order == [0, 2, 1, 0, 2, 1, 0, 2]


def test_m_config_of_one_task_is_adam() -> None:
    strategy = MConFIG(1)
    ours = torch.full((6,), 2.0, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    sgd, adam = torch.optim.SGD([ours], 0.1), torch.optim.Adam([theirs], 0.1)
    for step in range(20):
        scale = jacobian(step)[0]
        for parameter, optimizer in ((ours, sgd), (theirs, adam)):
            loss = (scale * parameter.square()).sum() + 50
            optimizer.zero_grad()
            (strategy([loss]) if parameter is ours else loss).backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e20])
def test_m_config_has_no_scale(scale: float) -> None:
    strategy, twin = MConFIG(3), MConFIG(3)
    for step in range(6):
        rows = jacobian(step).float()
        theta, losses = plane(rows)
        strategy(losses).backward()
        other, losses = plane(scale * rows)
        twin(losses).backward()
        assert theta.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(other.grad, theta.grad, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(twin.weights, strategy.weights, rtol=1e-4, atol=1e-5)


def test_m_config_with_gradients_that_vanish() -> None:
    strategy = MConFIG(3)
    for step in range(6):
        rows = jacobian(step)
        rows[1] = 0
        rows[:, 4] = 0
        d, w = solve(strategy, rows)
        assert d.isfinite().all()
        assert w.isfinite().all()
        assert d[4] == 0
    for _ in range(4):
        d, w = solve(MConFIG(3), 0 * jacobian(0))
        assert not d.any()


def test_m_config_of_features_is_config() -> None:
    strategy, other = MConFIG(3), ConFIG(3)
    for step in range(3):
        gradients = []
        for each in (strategy, other):
            leaf = torch.ones(4 + step, 2, dtype=torch.float64, requires_grad=True)
            features = leaf * 1.0
            losses = [(row[0] * features + row[1]).square().mean() for row in jacobian(step)]
            each(losses, shared=features).backward()
            gradients.append(leaf.grad)
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)
    assert strategy.averages.shape == (3, 0)
    solve(strategy, jacobian(0))  # and back to parameters
    assert strategy.turns.tolist() == [1, 0, 0]


@pytest.mark.parametrize("build", [MoCo, MConFIG])
def test_what_is_shared_may_grow_but_not_shrink(build: type[MoCo] | type[MConFIG]) -> None:
    strategy = build(3)
    for step, numbers in enumerate((4, 4, 4, 4, 6)):
        d, _ = solve(strategy, jacobian(step, numbers))
        assert d.isfinite().all()
    with pytest.raises(ValueError, match="5 numbers in this step, and had 6"):
        solve(strategy, jacobian(0, 5))
    assert strategy.step == 5
