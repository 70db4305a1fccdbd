from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mtlweight.distributed
from mtlweight import Bounded, LogLosses, SLGrad
from tests.contract.strategies import gradient_now, gradient_rows

TASKS = ("main", "helper")


class World:
    """A small network in double precision, a batch, and a held-out batch of the main task."""

    def __init__(self, tasks: tuple[str, ...] = TASKS, size: int = 6) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.trunk = nn.Linear(4, 5).double()
            self.heads = nn.ModuleDict({task: nn.Linear(5, 2).double() for task in tasks})
            self.x = torch.randn(size, 4, dtype=torch.float64)
            self.targets = {task: torch.randn(size, 2, dtype=torch.float64) for task in tasks}
            self.held_x = torch.randn(5, 4, dtype=torch.float64)
            self.held_y = torch.randn(5, 2, dtype=torch.float64)

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.trunk.parameters(), *self.heads.parameters()]

    def losses(self, rows: slice = slice(None)) -> dict[str, Tensor]:
        features = self.trunk(self.x[rows]).tanh()
        return {
            task: F.mse_loss(self.heads[task](features), y[rows], reduction="none").mean(1)
            for task, y in self.targets.items()
        }

    def held_out(self) -> Tensor:
        return F.mse_loss(self.heads["main"](self.trunk(self.held_x).tanh()), self.held_y)

    def take(self, value: Tensor) -> Tensor:
        return gradient_rows({"": value}, self.parameters)[0]

    def gradient(self) -> Tensor:
        return gradient_now(self.parameters)

    def scores(self, losses: dict[str, Tensor], rate: float) -> dict[str, Tensor]:
        """Returns the inner products by their definition: one pass for each sample."""
        mean = torch.stack([loss.mean() for loss in losses.values()]).mean()
        direction, start = self.take(mean), 0
        here = [p.detach().clone() for p in self.parameters]
        for p in self.parameters:
            p.data -= rate * direction[start : start + p.numel()].view_as(p)
            start += p.numel()
        v = self.take(self.held_out())
        for p, old in zip(self.parameters, here, strict=True):
            p.data.copy_(old)
        return {
            task: torch.stack([self.take(x) @ v for x in loss]) for task, loss in losses.items()
        }


def weights_of(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    total = sum((x.clamp_min(0).sum() for x in scores.values()), torch.zeros(()))
    return {task: x.clamp_min(0) / total for task, x in scores.items()}


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_the_weights_are_those_of_the_definition(rate: float) -> None:
    world = World()
    losses = world.losses()
    wanted = weights_of(world.scores(losses, rate))
    strategy = SLGrad(TASKS, validation=world.held_out, learning_rate=rate)
    total = strategy(losses)
    for task, w in wanted.items():
        torch.testing.assert_close(strategy.sample_weights[task], w, rtol=1e-9, atol=1e-12)
    sums = torch.stack([w.sum() for w in wanted.values()]).float()
    torch.testing.assert_close(strategy.weights, sums)
    assert strategy.weights.sum() == pytest.approx(1, rel=1e-6)
    value = sum((w * losses[task]).sum() for task, w in wanted.items())
    assert isinstance(value, Tensor)
    assert total.item() == pytest.approx(value.item(), rel=1e-9)
    spent = world.take(value)
    total.backward()
    torch.testing.assert_close(world.gradient(), spent, rtol=1e-9, atol=1e-12)


def test_the_trial_step_matters() -> None:
    world = World()
    found = []
    for rate in (0.0, 0.5):
        strategy = SLGrad(TASKS, validation=world.held_out, learning_rate=rate)
        strategy(world.losses())
        found.append(strategy.sample_weights["main"])
    assert not torch.allclose(found[0], found[1], rtol=1e-2)


def test_a_copy_of_the_held_out_sample_and_its_opposite() -> None:
    """Unit inputs and unit errors: all gradients are of one length, so the copy is the closest."""
    weight = nn.Parameter(torch.zeros(1, 8, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(7, 8, generator=generator, dtype=torch.float64), dim=1)
    held_out, x[3], x[5] = x[0].clone(), x[0], -x[0]

    strategy = SLGrad(
        TASKS,
        validation=lambda: (F.linear(held_out, weight) - 1).square().sum(),
        learning_rate=0.1,
    )
    errors = (F.linear(x, weight) - 1).square()[:, 0]
    strategy({"main": errors * 1.0, "helper": 2 - errors})
    main, helper = (strategy.sample_weights[task] for task in TASKS)
    assert main.argmax() in (0, 3)
    assert main[0] == pytest.approx(main[3].item())
    assert main[5] == 0
    assert helper[0] == helper[3] == 0
    assert helper[5] == pytest.approx(main[0].item())


def test_tasks_with_different_numbers_of_samples() -> None:
    world = World()
    losses = world.losses()
    ragged = {"main": losses["main"][:2], "helper": losses["helper"]}
    wanted = weights_of(world.scores(ragged, 0.3))
    strategy = SLGrad(TASKS, validation=world.held_out, learning_rate=0.3)
    strategy(ragged)
    for task, w in wanted.items():
        torch.testing.assert_close(strategy.sample_weights[task], w, rtol=1e-9, atol=1e-12)


def test_forms_of_the_losses() -> None:
    world = World()
    found = []
    for form in ("mapping", "list", "tensor", "backwards"):
        losses = world.losses()
        given: Any = {
            "mapping": losses,
            "list": list(losses.values()),
            "tensor": torch.stack(list(losses.values())),
            "backwards": dict(reversed(losses.items())),
        }[form]
        strategy = SLGrad(TASKS, validation=world.held_out, learning_rate=0.3)
        strategy(given).backward()
        found.append((world.gradient(), strategy.weights))
        for p in world.parameters:
            p.grad = None
    for gradient, weights in found[1:]:
        torch.testing.assert_close(gradient, found[0][0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(weights, found[0][1])


def test_one_loss_for_each_task_is_weighed_by_the_same_rule() -> None:
    world = World()
    means = {task: loss.mean() for task, loss in world.losses().items()}
    wanted = weights_of(world.scores({task: x[None] for task, x in means.items()}, 0.3))
    strategy = SLGrad(TASKS, validation=world.held_out, learning_rate=0.3)
    rows = torch.stack([world.take(x) for x in means.values()])
    strategy(means).backward()
    weights = torch.cat(list(wanted.values()))
    torch.testing.assert_close(strategy.weights.double(), weights, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(world.gradient(), weights @ rows, rtol=1e-6, atol=1e-8)


def test_where_nothing_helps_nothing_moves() -> None:
    world = World()
    strategy = SLGrad(TASKS, validation=lambda: 9 - world.held_out(), learning_rate=0.0)
    held = F.mse_loss(
        world.heads["main"](world.trunk(world.held_x).tanh()), world.held_y, reduction="none"
    )
    total = strategy({"main": held.mean().expand(4) * 1.0, "helper": held.mean().expand(2) * 2.0})
    total.backward()
    assert total.item() == 0
    assert not strategy.weights.any()
    assert not world.gradient().any()


def test_the_parameters_are_put_back() -> None:
    world = World()
    before = [p.detach().clone() for p in world.parameters]

    def broken() -> Tensor:
        assert not torch.equal(world.trunk.weight, before[0])
        raise KeyError("no more batches")

    strategies = [
        SLGrad(TASKS, validation=world.held_out, learning_rate=0.3),
        SLGrad(TASKS, validation=broken, learning_rate=0.3),
    ]
    strategies[0](world.losses())
    with pytest.raises(KeyError):
        strategies[1](world.losses())
    assert not strategies[1].sample_weights
    assert strategies[1].step == 0
    for p, old in zip(world.parameters, before, strict=True):
        assert torch.equal(p, old)
        assert p.grad is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: {"main": x["main"], "helper": x["helper"].mean()}, r"'main'.*\[6\].*'helper'"),
        (
            lambda x: {"main": x["main"][:, None], "helper": x["helper"]},
            r"'main'.*\[6, 1\].*flatten",
        ),
        (lambda x: {"main": x["main"][:0], "helper": x["helper"]}, r"'main'.*\[0\].*leave out"),
        (lambda x: {"main": x["main"], "helper": None}, "'helper'.*None"),
        (lambda x: {"main": x["main"] * torch.nan, "helper": x["helper"]}, "'main' is nan"),
        (lambda x: {"main": x["main"].detach(), "helper": x["helper"]}, "'main'.*detached"),
        (lambda x: {"main": x["main"], "other": x["helper"]}, "'other'"),
    ],
)
def test_losses_are_refused_by_name(change: Any, words: str) -> None:
    world = World()
    strategy = SLGrad(TASKS, validation=world.held_out, learning_rate=0.3)
    with pytest.raises((ValueError, TypeError), match=f"(?s){words}"):
        strategy(change(world.losses()))
    strategy(world.losses())
    assert strategy.step == 1


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda w: w.held_out().item(), "validation.*not a tensor"),
        (lambda w: w.held_out().detach(), "validation.*detached"),
        (lambda w: w.losses()["main"], r"validation.*\[6\]"),
        (lambda w: w.held_out() * torch.inf, "validation.*inf.*'helper'"),
        (lambda w: World().held_out(), "validation.*same network"),
    ],
)
def test_the_held_out_loss_is_refused(returned: Any, words: str) -> None:
    world = World()
    strategy = SLGrad(TASKS, validation=lambda: returned(world), learning_rate=0.3)
    with pytest.raises((ValueError, TypeError), match=f"(?s){words}"):
        strategy(world.losses())


class Once(torch.autograd.Function):
    """Says that it can't be differentiated twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


class Opaque(torch.autograd.Function):
    """Does not say so, as a kernel written by hand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.from_numpy(2 * gradient.detach().numpy())


@pytest.mark.parametrize("layer", [Once, Opaque])
@pytest.mark.parametrize("where", ["trunk", "losses"])
def test_a_layer_that_can_be_differentiated_once_only(layer: Any, where: str) -> None:
    """Autograd may leave out its part of the scores without a word; here it is said."""
    world = World()
    if where == "trunk":
        world.trunk.register_forward_hook(lambda *args: layer.apply(args[2]))
    strategy = SLGrad(TASKS, validation=world.held_out, learning_rate=0.3)
    losses = world.losses()
    if where == "losses":
        losses = {task: layer.apply(loss) for task, loss in losses.items()}
    with pytest.raises(RuntimeError, match="SLGrad differentiates the backward pass"):
        strategy(losses)


def test_evaluation_reads_samples_too() -> None:
    world = World()
    strategy = SLGrad(TASKS, validation=world.held_out, learning_rate=0.3)
    strategy(world.losses())
    strategy.eval()
    with torch.no_grad():
        losses = world.losses()
        total = strategy(losses)
    means = torch.stack([loss.mean() for loss in losses.values()])
    assert total.item() == pytest.approx((strategy.weights.double() * means).sum().item())


@pytest.mark.parametrize("rescale", ["one", "tasks", "equal-norm"])
def test_rescale_with_samples(rescale: Any) -> None:
    world = World()
    plain = SLGrad(TASKS, validation=world.held_out, learning_rate=0.3)
    strategy = SLGrad(TASKS, validation=world.held_out, learning_rate=0.3, rescale=rescale)
    plain(world.losses()).backward()
    reference = world.gradient()
    for p in world.parameters:
        p.grad = None
    total = strategy(world.losses())
    total.backward()
    ratio = strategy.weights[0] / plain.weights[0]
    torch.testing.assert_close(world.gradient(), ratio.double() * reference, rtol=1e-5, atol=1e-8)
    if rescale == "equal-norm":
        rows = torch.stack([world.take(x.mean()) for x in world.losses().values()])
        size = sum(p.numel() for p in world.trunk.parameters())
        wanted = rows[:, :size].mean(0).norm().item()
        assert world.gradient()[:size].norm().item() == pytest.approx(wanted, rel=1e-5)
    else:
        sums = {"one": 1, "tasks": 2}
        assert strategy.weights.sum().item() == pytest.approx(sums[rescale], rel=1e-5)


def test_the_scale_of_a_task_counts_and_a_task_may_be_hurt() -> None:
    """Its entries in the table of properties."""
    gradients = []
    for scale in (1.0, 100.0):
        world = World()
        losses = world.losses()
        strategy = SLGrad(TASKS, validation=world.held_out, learning_rate=0.0)
        strategy({"main": losses["main"], "helper": scale * losses["helper"]}).backward()
        gradients.append(world.gradient())
    assert F.cosine_similarity(gradients[0], gradients[1], dim=0) < 0.99
    world = World()
    losses = world.losses()
    hurt = world.take(-losses["main"].mean())
    strategy = SLGrad(TASKS, validation=world.held_out, learning_rate=0.0)
    strategy({"main": losses["main"], "helper": 9 - losses["main"].mean()[None]}).backward()
    assert hurt @ world.gradient() < 0


def test_wrapped() -> None:
    world = World()
    means = {task: loss.mean() for task, loss in world.losses().items()}
    rows = torch.stack([world.take(x) for x in means.values()])
    for wrap in (LogLosses, lambda inner: Bounded(inner, floor=0.4)):
        strategy = wrap(SLGrad(TASKS, validation=world.held_out, learning_rate=0.3))
        strategy({task: loss.mean() for task, loss in world.losses().items()}).backward()
        wanted = strategy.weights.double() @ rows
        torch.testing.assert_close(world.gradient(), wanted, rtol=1e-5, atol=1e-8)
        for p in world.parameters:
            p.grad = None


class Ranks:
    """Two ranks in the threads of one process: what the library needs of `torch.distributed`."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=20)
        self.sent: dict[int, Tensor] = {}

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def get_world_size(self) -> int:
        return 2

    def all_reduce(self, x: Tensor) -> None:
        rank = int(threading.current_thread().name)
        self.sent[rank] = x.clone()
        self.barrier.wait()
        assert self.sent[0].shape == self.sent[1].shape, "a reduction of different sizes"
        x.copy_(self.sent[0] + self.sent[1])
        self.barrier.wait()

    def run(self, work: Any) -> list[Any]:
        found: dict[int, Any] = {}
        threads = [
            threading.Thread(target=lambda i=i: found.update({i: work(i)}), name=str(i))
            for i in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [found[0], found[1]]


@pytest.mark.parametrize("form", ["samples", "means"])
def test_two_ranks_are_one(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """With four and two samples, against one rank with all six."""

    worlds = {rank: World() for rank in (None, 0, 1)}  # not in threads: they share a generator

    def work(rank: int | None) -> dict[str, Tensor]:
        world = worlds[rank]
        rows = {None: slice(None), 0: slice(0, 4), 1: slice(4, 6)}[rank]
        strategy = SLGrad(TASKS, validation=world.held_out, learning_rate=0.3)
        losses = world.losses(rows)
        counts = {task: len(loss) for task, loss in losses.items()}
        if form == "means":
            losses = {task: loss.mean() for task, loss in losses.items()}
        total = strategy(losses, counts=counts)
        total.backward()
        found = {"gradient": world.gradient(), "weights": strategy.weights, "value": total.detach()}
        return found | strategy.sample_weights

    one = work(None)
    monkeypatch.setattr(mtlweight.distributed, "dist", Ranks())
    ranks = mtlweight.distributed.dist.run(work)
    mean = (ranks[0]["gradient"] + ranks[1]["gradient"]) / 2
    torch.testing.assert_close(mean, one["gradient"], rtol=1e-6, atol=1e-9)
    for rank in ranks:
        torch.testing.assert_close(rank["weights"], one["weights"])
        torch.testing.assert_close(rank["value"], one["value"])
    if form == "samples":
        for task in TASKS:
            torch.testing.assert_close(torch.cat([rank[task] for rank in ranks]), one[task])
