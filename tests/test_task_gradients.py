"""How task gradients are taken: by any route, products and gradients are those of autograd."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mtlweight import DBMTL, MGDA, GramStrategy, PCGrad, rows_by_task
from mtlweight.products import inner_products
from mtlweight.task_gradients.layers import find_layers
from mtlweight.task_gradients.shared_leaves import walk
from tests.contract.strategies import (
    OF_GRADIENTS,
    TASKS,
    Case,
    Network,
    batch,
    gradient_now,
    gradient_rows,
    losses_of,
)

T = 4


class Products(GramStrategy):
    """Keeps the Gram matrix it was given, and weighs by numbers of its own."""

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        self.seen = gram
        return torch.arange(1.0, len(gram) + 1, dtype=torch.float64)


class Squeeze(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.ndim == 4 else x.mean(1) if x.ndim == 3 else x


def images() -> Tensor:
    return torch.randn(3, 4, 7, 6)


def trunk_linear() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(9, 40), nn.Tanh(), nn.Linear(40, 30), nn.Tanh()), torch.randn(
        5, 9
    )


def trunk_without_bias() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(
        nn.Linear(30, 40, bias=False), nn.Tanh(), nn.Linear(40, 30), nn.Tanh()
    ), torch.randn(5, 30)


def trunk_of_sequences() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(
        nn.Linear(30, 40), nn.LayerNorm(40), nn.GELU(), nn.Linear(40, 30), Squeeze()
    ), torch.randn(2, 3, 30)


def trunk_of_convolutions() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(
        nn.Conv2d(4, 64, 3, stride=2, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 48, (3, 2), dilation=(1, 2), padding=(0, 1), bias=False),
        nn.ReLU(),
        nn.Conv2d(48, 30, 1),
        Squeeze(),
    ), images()


def trunk_of_groups() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(
        nn.Conv2d(4, 32, 3, groups=2),
        nn.GroupNorm(4, 32),
        nn.ConvTranspose2d(32, 30, 3),
        nn.Conv2d(30, 30, 3, padding="same", padding_mode="circular"),
        Squeeze(),
    ), images()


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(30, 30), nn.Linear(30, 30)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.again(self.again(self.first(x).tanh()).tanh())
        return out


def trunk_used_twice() -> tuple[nn.Module, Tensor]:
    return Twice(), torch.randn(4, 30)


def trunk_partly_frozen() -> tuple[nn.Module, Tensor]:
    net, x = trunk_linear()
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name not in ("0.bias", "2.weight"))
    return net, x


def trunk_checkpointed() -> tuple[nn.Module, Tensor]:
    inner, x = trunk_linear()

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = checkpoint(self.inner, x, use_reentrant=False)
            return out

    return Checkpointed(), x


TRUNKS: list[Callable[[], tuple[nn.Module, Tensor]]] = [
    trunk_linear,
    trunk_without_bias,
    trunk_of_sequences,
    trunk_of_convolutions,
    trunk_of_groups,
    trunk_used_twice,
    trunk_partly_frozen,
    trunk_checkpointed,
]


class Problem:
    """T heads on a trunk, one of which does not read all of it."""

    def __init__(
        self, build: Callable[[], tuple[nn.Module, Tensor]], dtype: torch.dtype = torch.float64
    ) -> None:
        torch.manual_seed(3)
        trunk, x = build()
        self.trunk, self.x = trunk.to(dtype).eval(), x.to(dtype)
        self.heads = nn.ModuleList(nn.Linear(30, 2).to(dtype) for _ in range(T))
        self.targets = [torch.randn(len(x), 2, dtype=dtype) for _ in range(T)]
        self.shared = [p for p in self.trunk.parameters() if p.requires_grad]

    def losses(self) -> list[Tensor]:
        z = self.trunk(self.x)
        return [
            (1 + i) * F.mse_loss(head(z), y)
            for i, (head, y) in enumerate(zip(self.heads, self.targets, strict=True))
        ]

    def rows(self) -> Tensor:
        return gradient_rows(dict(zip("abcd", self.losses(), strict=True)), self.shared)


@pytest.mark.parametrize("chunk", [None, 1, 700, 10**9])
@pytest.mark.parametrize("build", TRUNKS, ids=lambda f: f.__name__)
def test_products_and_gradient(
    build: Callable[[], tuple[nn.Module, Tensor]], chunk: int | None
) -> None:
    problem = Problem(build)
    rows = problem.rows()
    strategy = Products(T, chunk=chunk)
    strategy(problem.losses()).backward()
    torch.testing.assert_close(strategy.seen, rows @ rows.T, rtol=1e-10, atol=1e-13)
    weights = torch.arange(1.0, T + 1, dtype=torch.float64)
    torch.testing.assert_close(gradient_now(problem.shared), weights @ rows)
    for i, head in enumerate(problem.heads):  # heads are plain
        (own,) = torch.autograd.grad(problem.losses()[i], head.weight)
        torch.testing.assert_close(head.weight.grad, own)


@pytest.mark.parametrize(
    ("build", "number"),
    [
        (trunk_linear, 2),
        (trunk_without_bias, 2),
        (trunk_of_sequences, 2),
        (trunk_of_convolutions, 3),
        (trunk_of_groups, 1),
        (trunk_used_twice, 1),
        (trunk_partly_frozen, 1),
        (trunk_checkpointed, 0),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_layers_that_are_told(build: Callable[[], tuple[nn.Module, Tensor]], number: int) -> None:
    """Those that one place of the graph reads, whose inputs are at hand, in one group."""
    problem = Problem(build)
    graph = walk(problem.losses())
    assert len(find_layers(graph, {id(p): p for p in problem.shared})) == number


def test_no_gradient_of_a_weight_is_held_where_its_layer_pays() -> None:
    """Eight samples: the products of a wide layer are those of 8 x 8 numbers."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(200, 300), nn.Tanh(), nn.Linear(300, 200))
    heads = [nn.Linear(200, 1) for _ in range(3)]
    x = torch.randn(8, 200)

    strategy = MGDA(3)
    losses = [head(trunk(x)).square().mean() for head in heads]
    # The forward passes are apart, so no layer has one place in the graph: here all rows are held.
    strategy(losses)
    (memory,) = strategy.workspace._pieces
    assert len(memory) == 3 * sum(p.numel() for p in trunk.parameters())
    z = trunk(x)
    strategy = MGDA(3)
    strategy([head(z).square().mean() for head in heads])
    (memory,) = strategy.workspace._pieces
    assert len(memory) == 0


@pytest.mark.parametrize("build", TRUNKS, ids=lambda f: f.__name__)
def test_single_precision(build: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    problem = Problem(build, torch.float32)
    rows = Problem(build).rows()
    strategy = Products(T)
    strategy(problem.losses()).backward()
    norms = rows.norm(dim=1)
    errors = (strategy.seen - rows @ rows.T) / norms[:, None] / norms
    assert errors.abs().max() < 3e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layers_of_half_precision(dtype: torch.dtype) -> None:
    """The products are as exact as in single precision, and beyond the range of half."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(64, 64), nn.Tanh()).to(dtype)
    heads = [nn.Linear(64, 1).to(dtype) for _ in range(T)]
    z = trunk(100 * torch.randn(4, 64, dtype=dtype))
    losses = [head(z).float().square().mean() for head in heads]
    rows = gradient_rows(dict(zip("abcd", losses, strict=True)), trunk.parameters()).double()
    strategy = Products(T)
    strategy(losses)
    norms = rows.norm(dim=1)
    errors = (strategy.seen - rows @ rows.T) / norms[:, None] / norms
    assert errors.abs().max() < 3e-6


@pytest.mark.parametrize(("beta", "size"), [(1, 12), (0.5, 12), (1, 1)])
@pytest.mark.parametrize("samples", [3, 400])
def test_what_is_added_to_a_product_may_be_no_plain_bias(
    samples: int, beta: float, size: int
) -> None:
    """A scaled bias, and one number for all outputs; by products, and where rows are held."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(12, 12).double())
    bias = nn.Parameter(torch.randn(size).double())
    heads = [nn.Linear(12, 1).double() for _ in range(2)]
    z = torch.addmm(bias, torch.randn(samples, 12).double(), weight.t(), beta=beta).tanh()
    losses = [head(z).square().mean() for head in heads]
    rows = gradient_rows(dict(zip("ab", losses, strict=True)), [weight, bias])
    strategy = Products(2)
    strategy(losses).backward()
    torch.testing.assert_close(strategy.seen, rows @ rows.T)
    wanted = torch.tensor([1.0, 2.0]).double() @ rows
    torch.testing.assert_close(gradient_now([weight, bias]), wanted)


def test_gradients_that_cancel_over_the_samples() -> None:
    """The sum over samples is a millionth of its terms: the short route would only see rounding."""
    torch.manual_seed(0)
    trunk = nn.Linear(50, 60)
    half = torch.randn(16, 50)
    x = torch.cat([half, half + 1e-6 * torch.randn(16, 50)])
    signs = torch.cat([torch.ones(16), -torch.ones(16)])[:, None]
    heads = [torch.randn(60) for _ in range(3)]

    def losses(trunk: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        z = trunk(x.to(dtype))
        return [(signs.to(dtype) * z * h.to(dtype)).sum() + 3 for h in heads]

    strategy = Products(3)
    strategy(losses(trunk, torch.float32))
    exact = gradient_rows(
        dict(zip("abc", losses(trunk.double(), torch.float64), strict=True)), trunk.parameters()
    )
    wanted = exact @ exact.T
    torch.testing.assert_close(strategy.seen, wanted, rtol=1e-2, atol=1e-2 * wanted.max().item())


def test_two_scalars_at_once_do_not_share_their_memory() -> None:
    problem = Problem(trunk_of_groups)
    rows = problem.rows()
    strategy = Products(T)
    first, second = strategy(problem.losses()), strategy(problem.losses())
    (first + 2 * second).backward()
    weights = torch.arange(1.0, T + 1, dtype=torch.float64)
    torch.testing.assert_close(gradient_now(problem.shared), 3 * weights @ rows)


@pytest.mark.parametrize("build", [Products, DBMTL])
def test_memory_is_used_again_in_the_next_steps(build: type[Products | DBMTL]) -> None:
    problem = Problem(trunk_of_groups)
    strategy = build(T)
    places: list[int] = []
    for _ in range(6):
        strategy(problem.losses()).backward()
        places += [piece.data_ptr() for piece in strategy.workspace._pieces]
    assert len(set(places)) == (1 if build is Products else 2)


def test_what_is_kept_is_not_written_over() -> None:
    """A saved state, a scalar still to be walked: their memory is not free."""
    problem = Problem(trunk_of_groups)
    strategy = DBMTL(T)
    strategy(problem.losses()).backward()
    state = strategy.state_dict()
    copy = state["averages"].clone()
    totals = [strategy(problem.losses()) for _ in range(4)]
    assert torch.equal(state["averages"], copy)
    found = []
    for total in totals:
        problem.trunk.zero_grad()
        total.backward()
        found.append(gradient_now(problem.shared))
    twin = DBMTL(T)
    twin(problem.losses())
    for wanted in found:
        problem.trunk.zero_grad()
        twin(problem.losses()).backward()
        torch.testing.assert_close(gradient_now(problem.shared), wanted)


def test_a_backward_may_be_repeated_and_scaled() -> None:
    problem = Problem(trunk_linear)
    rows = problem.rows()
    total = Products(T)(problem.losses())
    (3 * total).backward(retain_graph=True)
    total.backward()
    weights = torch.arange(1.0, T + 1, dtype=torch.float64)
    torch.testing.assert_close(gradient_now(problem.shared), 4 * weights @ rows)


@pytest.mark.parametrize("strategy", [PCGrad(T), DBMTL(T)], ids=lambda s: type(s).__name__)
def test_tasks_that_are_rows_of_a_batch(strategy: PCGrad | DBMTL) -> None:
    """A forward pass for each task gives what a joint one gives."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3)).double()
    x, y = torch.randn(12, 6).double(), torch.randn(12, 3).double()
    ids = torch.tensor([0, 1, 2, 3] * 3)
    twin = type(strategy)(T)
    apart = {
        task: F.mse_loss(network(x[rows]), y[rows]) for task, rows in rows_by_task(ids).items()
    }
    strategy(apart).backward()
    one = gradient_now(network.parameters())
    network.zero_grad()
    out = network(x)
    joint = {task: F.mse_loss(out[rows], y[rows]) for task, rows in rows_by_task(ids).items()}
    twin(joint).backward()
    torch.testing.assert_close(gradient_now(network.parameters()), one)


def test_inner_products_are_exact_over_long_rows() -> None:
    """A hundred thousand numbers with a large common part: one float32 sum would lose digits."""
    torch.manual_seed(0)
    rows = 1 + 0.1 * torch.randn(3, 100_003)
    exact = rows.double() @ rows.double().T
    assert ((inner_products(rows, rows) - exact) / exact).abs().max() < 3e-8


@pytest.mark.parametrize("scale", [1e-22, 1e18, 1e22])
def test_lengths_outside_the_range_of_single_precision_squares(scale: float) -> None:
    rows = torch.tensor([[3.0, 1, 0, 0], [-1, 2, 1, 0], [0, -1, 2, 2]])
    theta = torch.zeros(4, requires_grad=True)
    strategy = Products(3)
    strategy([scale * row @ theta + 1 for row in rows])
    torch.testing.assert_close(
        strategy.seen / scale**2, rows.double() @ rows.double().T, rtol=1e-5, atol=1e-6
    )


def test_every_pair_of_rows_meets_once() -> None:
    """The products of the blocks up to the diagonal, added to their transpose, are all of them."""
    problem = Problem(trunk_linear)
    problem.x = torch.randn(150, 9, dtype=torch.float64)
    problem.targets = [torch.randn(150, 2, dtype=torch.float64) for _ in range(T)]
    rows = problem.rows()
    graph = walk(losses := problem.losses())
    layers = find_layers(graph, {id(p): p for p in problem.shared})
    gram = torch.zeros(T, T, dtype=torch.float64)
    for layer, (task, loss) in itertools.product(layers, enumerate(losses)):
        (at,) = torch.autograd.grad(loss, [layer.edge], retain_graph=True)
        layer.take(task, T, at)
    for layer in layers:
        gram += layer.gram()
    torch.testing.assert_close(gram, rows @ rows.T)


GRAM = [case for case in OF_GRADIENTS if isinstance(case.build(TASKS), GramStrategy)]


@pytest.mark.parametrize("case", GRAM, ids=str)
def test_chunks_change_memory_alone(case: Case) -> None:
    """Every strategy on the Gram matrix, heads included."""
    found = []
    for options in ({}, {"chunk": 20}):
        network, strategy = Network().double(), case.build(TASKS, **options)
        for step in range(3):
            network.zero_grad()
            strategy(losses_of(network, batch(step, dtype=torch.float64))[1]).backward()
        found.append(gradient_now(network.parameters()))
    assert len(GRAM) > 15
    torch.testing.assert_close(found[0], found[1])


Heads = Callable[[list[Tensor], list[nn.Linear]], list[Tensor]]


def each_its_own(z: list[Tensor], heads: list[nn.Linear]) -> list[Tensor]:
    return [head(z[0]).square().mean() for head in heads]


def used_twice(z: list[Tensor], heads: list[nn.Linear]) -> list[Tensor]:
    return [(head(z[0]) * z[0] * z[0]).mean() for head in heads]


def two_features(z: list[Tensor], heads: list[nn.Linear]) -> list[Tensor]:
    first = (heads[0](z[0]) + heads[1](z[1])).square().mean()
    return [first, *(head(z[1]).square().mean() for head in heads[2:]), z[0].square().sum()]


def met_above(z: list[Tensor], heads: list[nn.Linear]) -> list[Tensor]:
    neck = z[0].tanh() + z[1]
    return [head(neck).square().mean() for head in heads]


def one_head_for_two(z: list[Tensor], heads: list[nn.Linear]) -> list[Tensor]:
    return [*(head(z[0]).square().mean() for head in heads[:-1]), heads[0](z[1]).sum()]


@pytest.mark.parametrize(
    "losses",
    [each_its_own, used_twice, two_features, met_above, one_head_for_two],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("stacked", [False, True])
def test_gradients_of_features_by_any_heads(losses: Heads, stacked: bool) -> None:
    """One pass through all heads, or one a task where the tasks meet: the same gradients."""
    torch.manual_seed(0)
    trunk = nn.Linear(3, 10).double()
    heads = [nn.Linear(5, 5).double() for _ in range(T)]
    x = torch.randn(6, 3, dtype=torch.float64)
    leaves = [*trunk.parameters(), *(p for head in heads for p in head.parameters())]

    def forward() -> tuple[list[Tensor], list[Tensor]]:
        z = list(trunk(x).tanh().split(5, dim=1))
        return z, losses(z, heads)

    z, found = forward()
    rows = []
    for loss in found:
        gradients = torch.autograd.grad(loss, z, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in gradients]))
    products = torch.stack(rows) @ torch.stack(rows).T
    weighted = sum(w * loss for w, loss in enumerate(found, start=1))
    expected = torch.autograd.grad(weighted, leaves, allow_unused=True)
    strategy = Products(len(found), heads="weighted")
    z, found = forward()
    strategy(torch.stack(found) if stacked else found, shared=z).backward()
    torch.testing.assert_close(strategy.seen, products)
    for leaf, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad, gradient)
