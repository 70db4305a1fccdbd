from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, minimize
from torch import Tensor, nn
from torch.nn import functional as F

from mtlweight import FORUM, MOML, AutoLambda, IGBv2, OptionError, Strategy
from mtlweight.solvers import min_norm_point
from mtlweight.strategies.experimental.actor_critic import (
    SoftActorCritic,
    softmax_normal_log_prob,
)
from mtlweight.strategies.experimental.forum import minimum_on_simplex, shares

TASKS = ("a", "b", "c")


class World:
    """A small network in double precision, with a training and a held-out batch."""

    def __init__(self, tasks: tuple[str, ...] = TASKS) -> None:
        self.tasks = tasks
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.trunk = nn.Linear(4, 5).double()
            self.heads = nn.ModuleDict({task: nn.Linear(5, 2).double() for task in tasks})
            self.data = {
                part: (
                    torch.randn(6, 4, dtype=torch.float64),
                    {task: torch.randn(6, 2, dtype=torch.float64) for task in tasks},
                )
                for part in ("train", "held out")
            }

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.trunk.parameters(), *self.heads.parameters()]

    def losses(self, part: str = "train") -> dict[str, Tensor]:
        x, targets = self.data[part]
        features = self.trunk(x).tanh()
        return {task: F.mse_loss(self.heads[task](features), y) for task, y in targets.items()}

    def training(self) -> dict[str, Tensor]:
        return self.losses()

    def held_out(self) -> dict[str, Tensor]:
        return self.losses("held out")

    def unrolled(self, weights: Tensor, rate: float, decay: float = 0.0) -> list[Tensor]:
        """Returns the held-out losses after one step, as functions of the weights."""
        names = [*self.trunk.state_dict(), *self.heads.state_dict()]
        assert len(names) == len(self.parameters)
        total = (weights * torch.stack(list(self.losses().values()))).sum()
        slopes = torch.autograd.grad(total, self.parameters, create_graph=True)
        moved = [
            p.detach() - rate * (g + decay * p.detach())
            for p, g in zip(self.parameters, slopes, strict=True)
        ]
        x, targets = self.data["held out"]
        features = F.linear(x, moved[0], moved[1]).tanh()
        return [
            F.mse_loss(F.linear(features, moved[2 + 2 * i], moved[3 + 2 * i]), y)
            for i, y in enumerate(targets.values())
        ]

    def gradients(self, part: str = "train") -> Tensor:
        rows = []
        for loss in self.losses(part).values():
            found = torch.autograd.grad(
                loss, self.parameters, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            rows.append(torch.cat([g.reshape(-1) for g in found]))
        return torch.stack(rows)

    def gradient(self) -> Tensor:
        return torch.cat(
            [
                (torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1)
                for p in self.parameters
            ]
        )


def first_slope(strategy: Any) -> Tensor:
    """Returns the gradient that the first step of the inner Adam was given."""
    slope: Tensor = strategy.adam.first / (1 - 0.9)
    return slope.double()


def build_all(world: World) -> Iterator[Strategy]:
    yield AutoLambda(world.tasks, validation=world.held_out, learning_rate=0.1)
    yield MOML(world.tasks, validation=world.held_out)
    yield FORUM(world.tasks, validation=world.held_out, training=world.training)


# --- moving the parameters and moving them back --------------------------------------------------


def test_the_parameters_are_put_back() -> None:
    world = World()
    for strategy in build_all(world):
        losses = world.losses()
        before = [p.detach().clone() for p in world.parameters]
        versions = [p._version for p in world.parameters]
        plain = torch.autograd.grad(sum(losses.values()), world.parameters, retain_graph=True)
        strategy(losses)
        for p, old, version in zip(world.parameters, before, versions, strict=True):
            assert torch.equal(p, old)
            assert p._version == version
            assert p.grad is None
        again = torch.autograd.grad(sum(losses.values()), world.parameters)
        for one, other in zip(plain, again, strict=True):
            assert torch.equal(one, other)


def test_the_parameters_are_put_back_when_the_closure_fails() -> None:
    world = World()
    seen = []

    def broken() -> Any:
        seen.append(world.trunk.weight.detach().clone())
        raise KeyError("no more batches")

    before = [p.detach().clone() for p in world.parameters]
    strategies = [
        AutoLambda(TASKS, validation=broken, learning_rate=0.1),
        MOML(TASKS, validation=broken),
        FORUM(TASKS, validation=world.held_out, training=broken),
    ]
    for strategy in strategies:
        state = copy.deepcopy(strategy.state_dict())
        with pytest.raises(KeyError, match="no more"):
            strategy(world.losses())
        for p, old in zip(world.parameters, before, strict=True):
            assert torch.equal(p, old)
        for name, buffer in strategy.named_buffers():
            assert torch.equal(buffer, state[name])
    assert all(not torch.equal(weight, before[0]) for weight in seen)


def test_autocast_does_not_keep_copies_of_other_points() -> None:
    """Within the loop's own autocast, whose cache of parameters knows of no move."""
    slopes = []
    for inside in (True, False):
        net = nn.Linear(4, 2)
        nn.init.constant_(net.weight, 0.3)
        nn.init.zeros_(net.bias)
        x = torch.arange(8.0).reshape(2, 4) / 4

        def held_out(net: nn.Module = net, x: Tensor = x) -> list[Tensor]:
            with torch.autocast("cpu", torch.bfloat16):
                return [out.float().square().mean() for out in net(x).unbind(1)]

        strategy = AutoLambda(2, validation=held_out, learning_rate=1.0)
        with torch.autocast("cpu", torch.bfloat16):
            losses = [out.float().square().mean() for out in net(x).unbind(1)]
            if inside:
                strategy(losses)
                after = net(x)
        if not inside:
            strategy(losses)
            with torch.autocast("cpu", torch.bfloat16):
                after = net(x)
        slopes.append((first_slope(strategy), after.detach().clone()))
    assert torch.equal(slopes[0][0], slopes[1][0])
    assert torch.equal(slopes[0][1], slopes[1][1])


def test_a_module_as_closure_stays_outside() -> None:
    class Closure(nn.Module):
        def __init__(self, world: World) -> None:
            super().__init__()
            self.world, self.trunk = world, world.trunk

        def forward(self) -> dict[str, Tensor]:
            return self.world.held_out()

    world = World()
    strategy = AutoLambda(TASKS, validation=Closure(world), learning_rate=0.1)
    strategy(world.losses())
    assert not list(strategy.parameters())
    assert not any("trunk" in name for name in strategy.state_dict())


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda w: {t: x.detach() for t, x in w.held_out().items()}, "validation.*detached"),
        (lambda w: {"d": w.held_out()["a"]}, "validation.*'d'"),
        (lambda w: {t: x * torch.nan for t, x in w.held_out().items()}, "validation.*nan.*'a'"),
        (lambda w: {t: x[None].expand(2) for t, x in w.held_out().items()}, r"validation.*\[2\]"),
        (lambda w: World().held_out(), "validation.*same network"),
        (lambda w: None, "None"),
    ],
)
def test_held_out_losses_are_refused_by_name(returned: Any, words: str) -> None:
    world = World()
    for cls, more in ((AutoLambda, {"learning_rate": 0.1}), (MOML, {}), (FORUM, {})):
        if cls is FORUM:
            more = {"training": world.training}
        strategy: Any = cls(TASKS, validation=lambda: returned(world), **more)
        state = copy.deepcopy(strategy.state_dict())
        with pytest.raises((ValueError, TypeError), match=f"(?s){words}"):
            strategy(world.losses())
        assert strategy.step == 0
        assert torch.equal(strategy.weights, state["weights"])


def test_a_step_too_long_is_said() -> None:
    world = World()
    strategy = AutoLambda(TASKS, validation=world.held_out, learning_rate=1e200)
    with pytest.raises(ValueError, match=r"learning rate 1e\+200 along the losses .*'b'"):
        strategy(world.losses())


# --- Auto-Lambda ---------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("primary", [None, ("b",), ("a", "c")])
def test_auto_lambda_takes_the_true_hypergradient(decay: float, primary: Any) -> None:
    world = World()
    strategy = AutoLambda(
        TASKS,
        validation=world.held_out,
        learning_rate=0.2,
        primary=primary,
        initial=0.7,
        weight_decay=decay,
    )
    weights = torch.full((3,), 0.7, dtype=torch.float64, requires_grad=True)
    upper = world.unrolled(weights, 0.2, decay)
    total = sum((x for t, x in zip(TASKS, upper, strict=True) if t in (primary or TASKS)), 0)
    (wanted,) = torch.autograd.grad(total, weights)
    total = strategy(world.losses())
    torch.testing.assert_close(first_slope(strategy), wanted, rtol=1e-5, atol=1e-7)
    total.backward()
    spent = strategy.weights.double() @ world.gradients()
    torch.testing.assert_close(world.gradient(), spent, rtol=1e-6, atol=1e-8)
    moved = strategy.weights.double() - 0.7
    torch.testing.assert_close(moved, -1e-4 * wanted.sign(), rtol=1e-2, atol=1e-7)


def test_auto_lambda_on_a_line() -> None:
    """Losses ½(x - c)²: the slope is -α (x' - m)(x - c), with x' after the step."""
    x = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    centres, goal, alpha = (0.0, 3.0), 0.2, 0.5
    strategy = AutoLambda(
        ("main", "other"),
        validation=lambda: {"main": (x - goal).square() / 2},
        learning_rate=alpha,
        primary=["main"],
    )
    strategy([(x - c).square() / 2 for c in centres])
    ahead = 1 - alpha * (0.1 * 1 + 0.1 * -2)
    wanted = torch.tensor([-alpha * (ahead - goal) * (1 - c) for c in centres])
    torch.testing.assert_close(first_slope(strategy), wanted.double(), rtol=1e-6, atol=0)


def test_auto_lambda_turns_on_a_task_that_harms() -> None:
    world = World(("main", "copy", "opposite"))
    strategy = AutoLambda(
        world.tasks,
        validation=lambda: {"main": world.losses()["main"]},
        learning_rate=0.1,
        primary=["main"],
        meta_learning_rate=0.01,
    )
    for _ in range(40):
        main = world.losses()["main"]
        strategy({"main": main, "copy": main * 1.0, "opposite": 10 - main})
    named = strategy.named_weights
    assert named["opposite"] < 0 < named["copy"] == pytest.approx(named["main"])


def test_primary_tasks_are_checked() -> None:
    world = World()
    for primary in (["d"], [], ["a", "x"]):
        with pytest.raises(OptionError, match="primary"):
            AutoLambda(TASKS, validation=world.held_out, learning_rate=0.1, primary=primary)
    strategy = AutoLambda(
        TASKS, validation=lambda: {"b": world.held_out()["b"]}, learning_rate=0.1, primary=["a"]
    )
    with pytest.raises(ValueError, match="primary tasks a"):
        strategy(world.losses())
    with pytest.raises(OptionError, match="validation"):
        AutoLambda(TASKS, validation=3, learning_rate=0.1)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="validation"):
        AutoLambda(TASKS, learning_rate=0.1)  # type: ignore[call-arg]


def test_a_batch_of_helpers_alone_still_learns_from_the_primary_task() -> None:
    world = World()
    strategy = AutoLambda(TASKS, validation=world.held_out, learning_rate=0.1, primary=["a"])
    losses = world.losses()
    strategy({task: losses[task] for task in ("b", "c")})
    assert (first_slope(strategy) != 0).tolist() == [False, True, True]


# --- MOML ----------------------------------------------------------------------------------------


def test_moml_takes_the_true_hypergradients() -> None:
    world = World()
    strategy = MOML(TASKS, validation=world.held_out, learning_rate=0.2)
    strategy.logits = torch.tensor([0.5, -0.2, 0.1])
    logits = strategy.logits.double().requires_grad_()
    upper = world.unrolled(logits.softmax(0), 0.2)
    u = torch.stack([torch.autograd.grad(x, logits, retain_graph=True)[0] for x in upper])
    units = u / u.norm(dim=1, keepdim=True)
    wanted = min_norm_point(units @ units.T) @ u
    strategy(world.losses()).backward()
    torch.testing.assert_close(first_slope(strategy), wanted, rtol=1e-5, atol=1e-9)
    weights = strategy.logits.double().softmax(0)
    torch.testing.assert_close(strategy.weights.double(), weights, rtol=1e-6, atol=1e-7)
    spent = weights @ world.gradients()
    torch.testing.assert_close(world.gradient(), spent, rtol=1e-6, atol=1e-8)


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(2, 5))
def test_moml_goes_down_every_held_out_loss(seed: int, uppers: int, tasks: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(uppers, tasks, generator=generator, dtype=torch.float64)
    u[seed % uppers] *= 10.0 ** (seed % 7 - 3)
    strategy = MOML(tasks, validation=World().held_out)
    d = strategy.descent(u)
    norms = u.norm(dim=1)
    # The shortest vector of unit length gradients has a product with each of at least its square.
    cosines = (u / norms[:, None]) @ strategy.descent(u / norms[:, None])
    assert (cosines >= -1e-9).all()
    assert d.isfinite().all()


def test_moml_stands_still_where_the_weights_move_nothing() -> None:
    world = World(("a",))
    strategy = MOML(("a",), validation=world.held_out)
    strategy(world.losses())
    assert strategy.logits.item() == 0
    assert strategy.weights.item() == 1


# --- FORUM ---------------------------------------------------------------------------------------


def reference_problem(
    units: Tensor, q: Tensor, square: float, rate: float, padding: Tensor
) -> tuple[np.ndarray[Any, Any], float]:
    """Returns λ and ν by a general solver; q with what it has in the logits, `padding`."""
    rows = torch.cat([units, torch.zeros(len(units), len(padding))], 1)
    rows = torch.cat([rows, torch.cat([q, padding])[None]]).numpy()
    gram = rows @ rows.T
    n = len(units)
    linear = np.zeros(n + 1)
    linear[-1] = -rate * square
    best = None
    for start in range(n):
        z = np.zeros(n + 1)
        z[start] = 1.0
        found = minimize(
            lambda z: z @ gram @ z / 2 + linear @ z,
            z,
            jac=lambda z: gram @ z + linear,
            bounds=[(0, None)] * (n + 1),
            constraints=[LinearConstraint(np.append(np.ones(n), 0.0)[None], 1, 1)],
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 1000},
        )
        if best is None or found.fun < best.fun:
            best = found
    assert best is not None
    return best.x[:n], float(best.x[n])


@pytest.mark.parametrize("seed", range(12))
def test_forum_solves_its_problem(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    n = 2 + seed % 4
    units = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    units /= units.norm(dim=1, keepdim=True)
    q = torch.randn(6, generator=generator, dtype=torch.float64) * 10.0 ** (seed % 3 - 1)
    padding = 0.1 * torch.randn(n, generator=generator, dtype=torch.float64)
    square = q @ q + padding @ padding
    for rate in (0.1, 1.0):
        found = shares(units @ units.T, units @ q, square, rate, torch.ones(n, dtype=torch.bool))
        wanted, nu = reference_problem(units, q, square.item(), rate, padding)
        assert found.sum() == pytest.approx(1, abs=1e-9)
        assert (found >= 0).all()
        mine = max(0.0, (found @ (rate - units @ q / square)).item())

        def objective(w: Tensor, nu: float, rate: float = rate) -> float:
            z = torch.cat([w @ units + nu * q, nu * padding])
            value: float = (z @ z / 2 - nu * rate * square).item()
            return value

        best = objective(torch.as_tensor(wanted), nu)
        assert objective(found, mine) <= best + 1e-8 * (1 + abs(best))


@st.composite
def quadratics(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    n, rank = draw(st.integers(1, 6)), draw(st.integers(0, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    rows = torch.randn(n, rank, generator=generator, dtype=torch.float64)
    if draw(st.booleans()) and n > 1:
        rows[0] = rows[1]
    slope = torch.randn(n, generator=generator, dtype=torch.float64)
    slope *= draw(st.sampled_from((0.0, 1e-6, 1.0, 1e6)))
    return rows @ rows.T * draw(st.sampled_from((1e-8, 1.0, 1e8))), slope


@settings(max_examples=150)
@given(quadratics())
def test_minimum_on_simplex(problem: tuple[Tensor, Tensor]) -> None:
    hessian, slope = problem
    w = minimum_on_simplex(hessian, slope)
    assert (w >= 0).all()
    assert w.sum() == pytest.approx(1, abs=1e-9)
    slopes = hessian @ w + slope
    scale = hessian.abs().max() + slope.abs().max() + 1e-300
    assert ((slopes - w @ slopes) / scale >= -1e-9).all()  # no vertex is downhill


@pytest.mark.parametrize("inner", [1, 3])
def test_forum_from_its_definition(inner: int) -> None:
    world = World()
    eta, rate = 0.05, 0.1
    logits = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64)
    sigma = logits.softmax(0)
    here = [p.detach().clone() for p in world.parameters]
    upper, training = world.gradients("held out"), world.gradients()
    before = torch.stack(list(world.losses().values())).detach()
    for _ in range(inner):
        direction = sigma @ world.gradients()
        start = 0
        for p in world.parameters:
            piece = direction[start : start + p.numel()].view_as(p)
            p.data -= eta * piece
            start += p.numel()
    after = torch.stack(list(world.losses().values())).detach()
    for p, old in zip(world.parameters, here, strict=True):
        p.data.copy_(old)
    jacobian = torch.diag(sigma) - sigma[:, None] * sigma
    q_a, q = jacobian @ (before - after), sigma @ training
    norms = upper.norm(dim=1)
    units = upper / norms[:, None]
    square = (q_a @ q_a + q @ q).item()
    lam, nu = reference_problem(units, q, square, rate, q_a)
    wanted = torch.as_tensor(lam) @ units + nu * q

    strategy = FORUM(
        TASKS,
        validation=world.held_out,
        training=world.training,
        learning_rate=eta,
        inner_steps=inner,
        rate=rate,
    )
    strategy.logits = logits.float()
    strategy(world.losses()).backward()
    torch.testing.assert_close(world.gradient(), wanted, rtol=1e-4, atol=1e-5)
    reported = torch.as_tensor(lam) / norms + nu * sigma
    torch.testing.assert_close(strategy.weights.double(), reported, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first_slope(strategy), nu * q_a, rtol=1e-3, atol=1e-6)
    # The constraint it is all about: q falls at the rate asked for.
    assert wanted @ q + nu * q_a @ q_a >= rate * square * (1 - 1e-6)


def test_forum_stops_its_inner_steps_where_they_go_up() -> None:
    """With a rate far too large the first step is no better, and q has no slope in the logits."""
    world = World()
    strategy = FORUM(TASKS, validation=world.held_out, training=world.training, learning_rate=1e8)
    strategy(world.losses()).backward()
    assert world.gradient().isfinite().all()
    assert not strategy.logits.any()


def test_forum_averages_over_epochs() -> None:
    world = World()
    strategy = FORUM(TASKS, validation=world.held_out, training=world.training)
    strategy(world.losses())
    first = strategy.shares
    strategy.end_epoch()
    strategy.shares = torch.tensor([1.0, 0.0, 0.0])
    strategy(world.losses())
    step = 2**-0.75
    wanted = (1 - step) * torch.tensor([1.0, 0.0, 0.0]) + step * first
    torch.testing.assert_close(strategy.shares, wanted, rtol=1e-3, atol=1e-4)


def test_forum_needs_the_held_out_losses_of_the_tasks_present() -> None:
    world = World()
    for option in ("validation", "training"):
        closures: Any = {"validation": world.held_out, "training": world.training}
        whole = closures[option]
        closures[option] = lambda whole=whole: {"a": whole()["a"], "b": whole()["b"]}
        strategy = FORUM(TASKS, **closures)
        with pytest.raises(ValueError, match=f"{option}.*'c'"):
            strategy(world.losses())
        losses = world.losses()
        strategy({task: losses[task] for task in ("a", "b")}).backward()
        assert strategy.weights[2] == 0


# --- what holds for which of them -----------------------------------------------------------------


def test_no_bilevel_strategy_is_free_of_scales_or_of_harm() -> None:
    """Their entries in the table of properties."""
    for number in range(3):
        gradients = []
        for scale in (1.0, 100.0):
            world = World()
            strategy = list(build_all(world))[number]
            losses = world.losses()
            strategy({**losses, "b": scale * losses["b"]}).backward()
            gradients.append(world.gradient())
        assert F.cosine_similarity(gradients[0], gradients[1], dim=0) < 0.99
        world = World(("a", "b"))
        strategy = list(build_all(world))[number]
        losses = world.losses()
        strategy({"a": losses["a"], "b": 9 - 0.1 * losses["a"]}).backward()
        a = world.gradients()[0]
        assert (a @ world.gradient()) * (-0.1 * a @ world.gradient()) < 0  # one of the two


def test_the_scale_of_one_task_does_not_change_igb_v2() -> None:
    one, scaled = igb(), igb()
    for step in range(20):
        losses = losses_at(step)
        one(losses)
        scaled([losses[0], 100 * losses[1], losses[2]])
        factors = torch.tensor([1.0, 100.0, 1.0])
        torch.testing.assert_close(scaled.weights * factors, one.weights, rtol=1e-4, atol=1e-6)
        if step % 5 == 4:
            one.end_epoch()
            scaled.end_epoch()


# --- IGBv2 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_tasks", [2, 3, 5])
def test_the_density_of_an_action(num_tasks: int) -> None:
    """That of the differences of u, over the volume that the softmax makes of them."""
    generator = torch.Generator().manual_seed(num_tasks)
    u, mean, log_std = torch.randn(3, 20, num_tasks, generator=generator, dtype=torch.float64)
    w = u.softmax(1)
    variances = (2 * log_std).exp()
    differences = torch.distributions.MultivariateNormal(
        mean[:, :-1] - mean[:, -1:],
        torch.diag_embed(variances[:, :-1]) + variances[:, -1:, None],
    )
    wanted = differences.log_prob(u[:, :-1] - u[:, -1:]) - w.log().sum(1)
    wanted -= (num_tasks - 1) * math.log(num_tasks)
    found = softmax_normal_log_prob(u, mean, log_std)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    shifted = softmax_normal_log_prob(u + 7, mean, log_std)
    torch.testing.assert_close(shifted, found)


def test_the_density_integrates_to_one() -> None:
    a = (torch.arange(20000, dtype=torch.float64) + 0.5) / 10000  # the first of two weights
    u = torch.stack([a / 2, 1 - a / 2], 1).log()
    mean, log_std = torch.tensor([0.3, -0.5]).double(), torch.tensor([0.2, -0.4]).double()
    density = softmax_normal_log_prob(u, mean.expand_as(u), log_std.expand_as(u)).exp()
    assert density.mean() * 2 == pytest.approx(1, abs=1e-4)


def test_the_density_of_one_task_is_one() -> None:
    u = torch.tensor([[0.3], [-2.0]])
    assert softmax_normal_log_prob(u, u + 1, u).abs().max() < 1e-6


def test_the_agent_learns_which_task_pays() -> None:
    agent = SoftActorCritic(
        3,
        hidden=(32, 32),
        learning_rate=3e-3,
        discount=0.0,
        polyak=0.01,
        target_entropy=-3.0,
        seed=0,
    )
    generator = torch.Generator().manual_seed(0)
    state = torch.ones(64, 3)

    def mean_action() -> Tensor:
        actions = [agent.act(torch.ones(3), generator) for _ in range(200)]
        return torch.stack(actions).mean(0)

    assert mean_action()[1] < 1.5
    for _ in range(200):
        action = 3 * torch.randn(64, 3, generator=generator).softmax(1)
        agent.learn((state, action, action[:, 1], state), generator)
    after = mean_action()
    assert after[1] > 2
    assert after.sum() == pytest.approx(3, rel=1e-5)


def igb(**options: Any) -> IGBv2:
    small = {
        "base_epoch": 0,
        "random_epochs": 2,
        "update_after": 1,
        "update_every": 3,
        "memory": 8,
        "batch_size": 16,
        "hidden": 8,
    }
    return IGBv2(TASKS, **(small | options))


def losses_at(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return list((0.5 + torch.rand(3, generator=generator)).requires_grad_())


def run(strategy: IGBv2, start: int, end: int) -> list[Tensor]:
    weights = []
    for step in range(start, end):
        strategy(losses_at(step))
        weights.append(strategy.weights)
        if step % 5 == 4:
            strategy.end_epoch()
    return weights


def test_igb_v2_resumes_in_the_middle_of_learning() -> None:
    """With a memory that has gone round, an agent that has learned, and one that acts."""
    whole, first, second = igb(), igb(), igb()
    wanted = run(whole, 0, 31)
    found = run(first, 0, 17)
    assert first.recorded > len(first.transitions)
    assert not torch.equal(first.agent.actor, igb().agent.actor)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    found += run(second, 17, 31)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
    for name, value in whole.state_dict().items():
        other = second.state_dict()[name]
        assert other == value if name.endswith("_state") else torch.equal(other, value), name


def test_igb_v2_remembers_what_came_of_its_weights() -> None:
    strategy = igb(update_after=99)
    run(strategy, 0, 5)
    bases = torch.stack([torch.stack(losses_at(i)) for i in range(5)]).mean(0).detach()
    torch.testing.assert_close(strategy.bases, bases)
    assert strategy.count.item() == 0
    strategy(losses_at(5))
    action = strategy.latest_action
    strategy(losses_at(6))
    state = torch.stack(losses_at(5)).detach() / bases
    following = torch.stack(losses_at(6)).detach() / bases
    row = strategy.transitions[1]
    torch.testing.assert_close(row[:3], state)
    assert torch.equal(row[3:6], action)
    torch.testing.assert_close(row[6], (state - following).min())
    torch.testing.assert_close(row[7:], following)
    wanted = action / torch.stack(losses_at(5)).detach()
    strategy = igb(update_after=99)
    run(strategy, 0, 5)
    strategy(losses_at(5))
    torch.testing.assert_close(strategy.weights, wanted)


def test_igb_v2_breaks_the_chain_at_absent_tasks() -> None:
    strategy = igb()
    run(strategy, 0, 5)
    strategy(losses_at(5))
    count = strategy.count
    partial = dict(zip(TASKS, losses_at(6), strict=True))
    del partial["b"]
    strategy(partial)
    strategy(losses_at(7))
    assert torch.equal(strategy.count, count)
    strategy(losses_at(8))
    assert torch.equal(strategy.count, count + 1)


def test_igb_v2_draws_by_its_seed() -> None:
    one, same, other = igb(), igb(), igb(seed=1)
    weights = [run(strategy, 0, 12)[-1] for strategy in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_igb_v2_survives_a_spike() -> None:
    strategy = igb()
    run(strategy, 0, 11)
    strategy([1e18 * loss for loss in losses_at(11)])
    for weights in run(strategy, 12, 40):
        assert weights.isfinite().all()
        assert (weights > 0).all()


def test_igb_v2_has_one_weight_for_one_task() -> None:
    strategy = IGBv2(1, base_epoch=0, random_epochs=1, update_after=1, update_every=2, hidden=8)
    for step in range(9):
        total = strategy(losses_at(step)[:1])
        assert total.item() == pytest.approx(math.log(losses_at(step)[0].item()), rel=1e-5)
        strategy.end_epoch()
