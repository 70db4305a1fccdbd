"""Gradients of features whose heads begin with a linear layer: products and sums without them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mtlweight import GramStrategy
from mtlweight.inputs import read_losses
from mtlweight.task_gradients.linear_heads import linear_heads
from mtlweight.task_gradients.shared_leaves import SharedLeaves
from mtlweight.task_gradients.sought import seek

ROWS, WIDTH = 24, 40
WIDTHS = (1, 3, 2)
Heads = Callable[[Tensor, nn.ModuleList], list[Tensor]]


class Products(GramStrategy):
    """Keeps the Gram matrix it was given, and weighs by numbers of its own."""

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        self.seen = gram
        return torch.arange(1.0, len(gram) + 1, dtype=torch.float64)


def each_its_own(z: Tensor, heads: nn.ModuleList) -> list[Tensor]:
    return [head(z).tanh().square().mean() for head in heads]


def one_without_bias(z: Tensor, heads: nn.ModuleList) -> list[Tensor]:
    return [(z @ heads[0].weight.T).square().sum(), *each_its_own(z, heads[1:])]


def two_layers_for_one(z: Tensor, heads: nn.ModuleList) -> list[Tensor]:
    first = heads[0](z).mean() + heads[1](z).square().mean()
    return [first, heads[2](z).square().mean()]


def one_in_vain(z: Tensor, heads: nn.ModuleList) -> list[Tensor]:
    return [*each_its_own(z, heads[:2]), heads[2](z.detach()).square().mean()]


def one_frozen(z: Tensor, heads: nn.ModuleList) -> list[Tensor]:
    heads[1].requires_grad_(False)
    return each_its_own(z, heads)


def trunk_and_heads(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.ModuleList, Tensor]:
    torch.manual_seed(0)
    trunk, heads = nn.Linear(7, WIDTH), nn.ModuleList(nn.Linear(WIDTH, width) for width in WIDTHS)
    return trunk.to(dtype), heads.to(dtype), torch.randn(ROWS, 7, dtype=dtype)


def rows_of(losses: list[Tensor], z: Tensor) -> Tensor:
    return torch.stack(
        [
            torch.autograd.grad(loss, z, retain_graph=True, materialize_grads=True)[0].flatten()
            for loss in losses
        ]
    )


def heads_found(losses: list[Tensor], z: Tensor) -> int:
    names = tuple(f"task{i}" for i in range(len(losses)))
    step = read_losses(names, losses, training=True)
    known = SharedLeaves(sole_task=False)
    sought = seek(step, list(names), z, known, weighted_heads=False, remembered=False)
    return len(linear_heads(sought))


LINEAR = [each_its_own, one_without_bias, two_layers_for_one, one_in_vain, one_frozen]


@pytest.mark.parametrize("losses", LINEAR, ids=lambda f: f.__name__)
@pytest.mark.parametrize("heads_get", ["plain", "weighted"])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_products_and_gradients_are_those_of_autograd(
    losses: Heads, heads_get: str, scale: float
) -> None:
    trunk, heads, x = trunk_and_heads()
    z = trunk(x).tanh()
    found = losses(z, heads)
    assert heads_found(found, z)
    rows = rows_of(found, z)
    shared = torch.autograd.grad(
        sum(w * loss for w, loss in enumerate(found, 1)), [*trunk.parameters()], retain_graph=True
    )
    own = [p for p in heads.parameters() if p.requires_grad]
    factors = range(1, len(found) + 1) if heads_get == "weighted" else [1] * len(found)
    of_heads = torch.autograd.grad(
        sum(w * loss for w, loss in zip(factors, found, strict=True)), own, allow_unused=True
    )
    z = trunk(x).tanh()
    strategy = Products(len(found), heads=heads_get)
    (scale * strategy(losses(z, heads), shared=z)).backward()
    torch.testing.assert_close(strategy.seen, rows @ rows.T)
    for leaf, gradient in zip([*trunk.parameters(), *own], [*shared, *of_heads], strict=True):
        expected = torch.zeros_like(leaf) if gradient is None else scale * gradient
        torch.testing.assert_close(
            torch.zeros_like(leaf) if leaf.grad is None else leaf.grad, expected
        )


def through_an_activation(z: Tensor, heads: nn.ModuleList) -> list[Tensor]:
    return [heads[0](z.relu()).mean(), *each_its_own(z, heads[1:])]


def beside_the_head(z: Tensor, heads: nn.ModuleList) -> list[Tensor]:
    return [heads[0](z).mean() + z.square().mean(), *each_its_own(z, heads[1:])]


def scaled_product(z: Tensor, heads: nn.ModuleList) -> list[Tensor]:
    first = torch.addmm(heads[0].bias, z, heads[0].weight.T, alpha=2.0)
    return [first.mean(), *each_its_own(z, heads[1:])]


def head_of_two(z: Tensor, heads: nn.ModuleList) -> list[Tensor]:
    y = heads[1](z)
    return [heads[0](z).mean(), y[:, 0].mean(), y[:, 1].mean()]


OTHERS = [through_an_activation, beside_the_head, scaled_product, head_of_two]


@pytest.mark.parametrize("losses", OTHERS, ids=lambda f: f.__name__)
def test_other_heads_go_the_other_way(losses: Heads) -> None:
    trunk, heads, x = trunk_and_heads()
    z = trunk(x).tanh()
    found = losses(z, heads)
    assert not heads_found(found, z)
    rows = rows_of(found, z)
    strategy = Products(len(found))
    strategy(found, shared=z)
    torch.testing.assert_close(strategy.seen, rows @ rows.T)


def test_wide_heads_go_the_other_way() -> None:
    """A product of K x K columns takes longer than the gradients, if there are many columns."""
    trunk, _, x = trunk_and_heads()
    z = trunk(x)
    heads = [nn.Linear(WIDTH, 200).double() for _ in range(3)]
    assert not heads_found([head(z).mean() for head in heads], z)


@pytest.mark.parametrize("size", [1e-24, 1e-8, 1.0, 1e12])
def test_lengths_out_of_the_range_of_single_precision(size: float) -> None:
    trunk, heads, x = trunk_and_heads(torch.float32)
    z = trunk(x).tanh()
    rows = rows_of(each_its_own(z, heads), z).double() * size
    strategy = Products(len(WIDTHS))
    strategy([size * loss for loss in each_its_own(z, heads)], shared=z)
    expected = rows @ rows.T
    torch.testing.assert_close(strategy.seen / size**2, expected / size**2, rtol=2e-5, atol=1e-12)


@pytest.mark.parametrize("apart", [1e-1, 1e-3, 1e-5])
def test_columns_that_cancel_keep_their_digits(apart: float) -> None:
    """Two classes whose weights are nearly the same: what one adds to the gradient, one takes."""
    torch.manual_seed(0)
    z = torch.randn(ROWS, WIDTH, requires_grad=True)
    head = nn.Linear(WIDTH, 2)
    with torch.no_grad():
        head.weight[1] = head.weight[0] + apart * torch.randn(WIDTH)
    other = nn.Linear(WIDTH, 1)
    features = 1 * z
    labels = torch.randint(0, 2, (ROWS,))
    losses = [nn.functional.cross_entropy(head(features), labels), other(features).mean()]
    strategy = Products(2)
    strategy(losses, shared=features)
    wide, single = head.weight.detach().double(), z.detach()
    d = (head(single).softmax(1) - nn.functional.one_hot(labels, 2)).detach().double() / ROWS
    square = (d @ wide).square().sum()
    torch.testing.assert_close(
        strategy.seen[0, 0] / square, torch.ones_like(square), rtol=1e-4, atol=0
    )
