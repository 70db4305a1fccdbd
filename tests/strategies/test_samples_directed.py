from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from mtlweight import Bounded, SLGrad
from tests.contract.strategies import gradient_now, gradient_rows

TASKS = ("main", "helper")


class Network(nn.Module):
    """A convolution, a norm, and a head for each task; counts its passes."""

    def __init__(self, norm: nn.Module, tied: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = norm
        self.heads = nn.ModuleDict({task: nn.Conv2d(4, 1, 1) for task in TASKS})
        if tied:
            self.heads["helper"].weight = self.heads["main"].weight
        self.passes = 0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.passes += 1
        features = F.gelu(self.norm(self.stem(x)))
        return {task: head(features) for task, head in self.heads.items()}


class Recurrent(nn.Module):
    """A recurrence over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        out: Tensor = self.layer(rows)[0]
        return out.transpose(1, 2).reshape(x.shape)


class World:
    """A network in double precision, a batch of six, and a held-out batch of the main task."""

    def __init__(self, norm: Callable[[], nn.Module] | None = None, tied: bool = False) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.network = Network(norm() if norm else nn.GroupNorm(2, 4), tied).double()
            self.x = torch.randn(6, 2, 5, 5, dtype=torch.float64)
            self.targets = {task: torch.randn(6, 1, 5, 5, dtype=torch.float64) for task in TASKS}
            self.held_x = torch.randn(3, 2, 5, 5, dtype=torch.float64)
            self.held_y = torch.randn(3, 1, 5, 5, dtype=torch.float64)
        self.validated = 0

    @property
    def parameters(self) -> list[Tensor]:
        return list(self.network.parameters())

    def losses(self) -> dict[str, Tensor]:
        outputs = self.network(self.x)
        return {
            task: (outputs[task] - y).square().flatten(1).mean(1)
            for task, y in self.targets.items()
        }

    def held_out(self) -> Tensor:
        self.validated += 1
        return F.mse_loss(self.network(self.held_x)["main"], self.held_y)

    def strategy(self, rate: float = 0.0, **options: Any) -> SLGrad:
        return SLGrad(TASKS, validation=self.held_out, learning_rate=rate, **options)

    def take(self, value: Tensor) -> Tensor:
        return gradient_rows({"": value}, self.parameters)[0]

    def gradient(self) -> Tensor:
        return gradient_now(self.parameters)


def test_tangents_are_dot_products() -> None:
    world = World()
    v = world.take(world.held_out())
    wanted = {
        task: torch.stack([world.take(x) @ v for x in y]) for task, y in world.losses().items()
    }
    with world.strategy().directed(world.network):
        losses = world.losses()
        for task, scores in wanted.items():
            dual = forward_ad.unpack_dual(losses[task])  # type: ignore[no-untyped-call]
            tangent = dual.tangent * v.norm()
            torch.testing.assert_close(tangent, scores, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.GroupNorm(2, 4),
        lambda: nn.BatchNorm2d(4).eval(),
        lambda: nn.BatchNorm2d(4),
        lambda: nn.utils.parametrizations.orthogonal(nn.Conv2d(4, 4, 1)),
        Recurrent,
    ],
    ids=["group", "batch, fixed", "batch", "parametrized", "recurrent"],
)
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("tied", [False, True])
def test_the_same_weights_as_by_two_derivatives(
    norm: Callable[[], nn.Module], rate: float, tied: bool
) -> None:
    twice, once = World(norm, tied), World(norm, tied)
    reference, strategy = twice.strategy(rate), once.strategy(rate)
    value = reference(twice.losses())
    value.backward()
    with strategy.directed(once.network, trial=once.losses):
        total = strategy(once.losses())
    total.backward()
    for task in TASKS:
        wanted = reference.sample_weights[task]
        torch.testing.assert_close(strategy.sample_weights[task], wanted, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(strategy.weights, reference.weights)
    torch.testing.assert_close(total, value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(once.gradient(), twice.gradient(), rtol=1e-9, atol=1e-12)


def test_a_copy_of_the_held_out_sample_and_its_opposite() -> None:
    """Unit inputs and unit errors: all gradients are of one length, so the copy is the closest."""
    network = nn.Linear(8, 1, bias=False).double()
    nn.init.zeros_(network.weight)
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(7, 8, generator=generator, dtype=torch.float64), dim=1)
    held_out, x[3], x[5] = x[0].clone(), x[0], -x[0]
    strategy = SLGrad(
        TASKS, validation=lambda: (network(held_out) - 1).square().sum(), learning_rate=0
    )
    with strategy.directed(network):
        errors = (network(x) - 1).square()[:, 0]
        strategy({"main": errors, "helper": 2 - errors})
    main, helper = (strategy.sample_weights[task] for task in TASKS)
    assert main[0] == main[3] == main.max()
    assert main[5] == 0
    assert helper[0] == helper[3] == 0
    assert helper[5] == pytest.approx(main[0].item())


def test_one_pass_of_the_network() -> None:
    world = World()
    strategy = world.strategy()
    for _ in range(3):
        world.network.passes = world.validated = 0
        with strategy.directed(world.network):
            total = strategy(world.losses())
        total.backward()
        assert world.network.passes - world.validated == 1
        assert world.validated == 1


def test_no_backward_pass_but_that_of_the_held_out_loss() -> None:
    world = World()
    strategy = world.strategy()
    walked: list[str] = []

    def note(gradient: Tensor) -> None:
        walked.append("main")

    for step in range(2):
        with strategy.directed(world.network):
            losses = world.losses()
            losses["main"].register_hook(note)  # type: ignore[no-untyped-call]
            total = strategy(losses)
        assert len(walked) == (1 if step == 0 else 2)  # the check of the first block
        total.backward()
    assert walked == ["main"] * 3


def test_the_modules_get_their_parameters_back() -> None:
    world = World(tied=True)
    before = dict(world.network.named_parameters(remove_duplicate=False))
    values = {name: p.detach().clone() for name, p in before.items()}
    strategy = world.strategy(0.1)
    with strategy.directed(world.network, trial=world.losses):
        strategy(world.losses())
    with pytest.raises(KeyError), strategy.directed(world.network, trial=world.losses):
        raise KeyError(type(world.network.stem.weight))
    after = dict(world.network.named_parameters(remove_duplicate=False))
    assert list(after) == list(before)
    for name, p in after.items():
        assert p is before[name]
        assert torch.equal(p, values[name])
        assert p.grad is None
    assert forward_ad._current_level == -1


def test_frozen_parameters_and_the_heads_of_others_carry_nothing() -> None:
    world = World()
    world.network.stem.requires_grad_(False)
    strategy = world.strategy()
    helper = world.network.heads["helper"]
    with strategy.directed(world.network):
        assert world.network.stem.weight.is_leaf
        assert isinstance(helper.weight, nn.Parameter)
        total = strategy(world.losses())
    total.backward()
    assert world.network.stem.weight.grad is None
    assert helper.weight.grad is not None


def trained(world: World, strategy: SLGrad, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        with strategy.directed(world.network):
            loss = strategy(world.losses())
        loss.backward()
        optimizer.step()


def test_training_goes_on_from_a_saved_state_to_the_bit() -> None:
    def start() -> tuple[World, SLGrad, torch.optim.Optimizer]:
        world = World(lambda: nn.BatchNorm2d(4))
        return world, world.strategy(), torch.optim.Adam(world.network.parameters(), lr=0.01)

    world, strategy, optimizer = start()
    begin = world.held_out().item()
    trained(world, strategy, optimizer, 3)
    assert world.held_out().item() < begin
    file = io.BytesIO()
    torch.save([x.state_dict() for x in (world.network, strategy, optimizer)], file)
    trained(world, strategy, optimizer, 3)
    file.seek(0)
    other = start()
    states = torch.load(file, weights_only=True)
    parts: list[Any] = [other[0].network, *other[1:]]
    for x, state in zip(parts, states, strict=True):
        x.load_state_dict(state)
    trained(*other, 3)
    for a, b in zip(
        world.network.state_dict().values(), other[0].network.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)
    assert torch.equal(strategy.weights, other[1].weights)
    assert strategy.step == other[1].step == 6


def test_losses_of_tasks_wrapped() -> None:
    world = World()
    means = {task: x.mean() for task, x in world.losses().items()}
    rows = torch.stack([world.take(x) for x in means.values()])
    inner = world.strategy()
    strategy = Bounded(inner, floor=0.4)
    with inner.directed(world.network):
        total = strategy({task: x.mean() for task, x in world.losses().items()})
    total.backward()
    wanted = strategy.weights.double() @ rows
    torch.testing.assert_close(world.gradient(), wanted, rtol=1e-5, atol=1e-8)


def test_several_networks_and_several_calls_in_a_block() -> None:
    world = World()
    reference = world.strategy()
    reference(world.losses())
    strategy, network = world.strategy(), world.network
    world.validated = 0
    with strategy.directed(network.stem, network.norm, network.heads):
        for _ in range(2):
            strategy(world.losses())
            for task, w in reference.sample_weights.items():
                torch.testing.assert_close(strategy.sample_weights[task], w)
    assert world.validated == 1


def test_attention_and_autocast() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0, batch_first=True)
    head = nn.Linear(8, 1)
    x = torch.randn(5, 4, 8, generator=torch.Generator().manual_seed(0))

    def losses(x: Tensor) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return {"main": (head(layer(x)).float() - 1).square().flatten(1).mean(1)}

    strategy = SLGrad(["main"], validation=lambda: losses(x[:1])["main"].mean(), learning_rate=0)
    with strategy.directed(layer, head):
        total = strategy(losses(x))
    total.backward()
    reference = SLGrad(["main"], validation=strategy.validation, learning_rate=0)
    with sdpa_kernel(SDPBackend.MATH):
        reference(losses(x))
    torch.testing.assert_close(
        strategy.sample_weights["main"], reference.sample_weights["main"], rtol=0, atol=0.02
    )
    assert all(p.grad is not None and p.dtype == p.grad.dtype for p in layer.parameters())


class Opaque(torch.autograd.Function):
    """A layer without forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Checkpointed(nn.Conv2d):
    """Computed again in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


class WithoutGradient(nn.Conv2d):
    """A part whose slope no gradient has."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            shift = super().forward(x)
        return 3 * x * shift


class Own(nn.Identity):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = Opaque.apply(x)
        return out


@pytest.mark.parametrize(
    ("norm", "words"),
    [
        (Own, "jvp"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), "forward AD"),
        (lambda: Checkpointed(4, 4, 1), "checkpoint"),
        (lambda: WithoutGradient(4, 4, 1), r"no_grad.*slope"),
    ],
)
def test_a_layer_without_forward_mode(norm: Callable[[], nn.Module], words: str) -> None:
    world = World(norm)
    strategy = world.strategy()
    before = world.parameters
    with (
        pytest.raises(RuntimeError, match=rf"(?s){words}.*without `directed`"),
        strategy.directed(world.network),
    ):
        strategy(world.losses())
    assert all(a is b for a, b in zip(world.parameters, before, strict=True))
    strategy(world.losses()).backward()  # the way out


@pytest.mark.parametrize(
    ("open_block", "words"),
    [
        (lambda w: w.strategy(0.1).directed(w.network), r"`learning_rate` 0\.1.*`trial=`"),
        (lambda w: w.strategy(rescale="equal-norm").directed(w.network), "equal-norm"),
        (lambda w: w.strategy().directed([w.network]), "list"),
        (lambda w: w.strategy().directed(), "0 networks"),
        (lambda w: w.strategy().directed(copy.deepcopy(w.network)), "does not depend"),
    ],
)
def test_a_block_that_is_not_opened(open_block: Any, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        open_block(World()).__enter__()


def test_a_call_at_the_wrong_place() -> None:
    world = World()
    strategy, outside = world.strategy(), world.losses()
    with pytest.raises(ValueError, match="inside the block"), strategy.directed(world.network):
        strategy(outside)
    with strategy.directed(world.network):
        losses = world.losses()
    with pytest.raises(ValueError, match=r"call strategy\(losses\) inside"):
        strategy(losses)
    assert strategy.step == 0
    with pytest.raises(RuntimeError, match="after the block"), strategy.directed(world.network):
        strategy(world.losses()).backward()
    assert not any(p.grad is not None for p in world.parameters)
    strategy(world.losses()).backward()  # without a block, by two derivatives
    assert all(p.grad is not None for p in world.parameters)


def test_evaluation_takes_nothing() -> None:
    world = World()
    strategy = world.strategy().eval()
    with torch.no_grad(), strategy.directed(world.network):
        strategy(world.losses())
    assert world.validated == 0
