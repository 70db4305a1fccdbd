"""Hooks of tensors within the network change task gradients as they do in plain training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtlweight
from mtlweight import GradientStrategy, GramStrategy

TASKS = [f"task{i}" for i in range(8)]
READING = [
    name
    for name, cls in mtlweight.available().items()
    if issubclass(cls, GramStrategy | GradientStrategy)
]
Change = Callable[[Tensor], Tensor]


class Scaled(torch.autograd.Function):
    """Scales the gradient of the first half of the columns, in the graph itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return scaled(gradient)


def scaled(gradient: Tensor) -> Tensor:
    factors = torch.ones(gradient.shape[1], dtype=gradient.dtype)
    factors[: len(factors) // 2] = 30
    return gradient * factors


def by_hook(x: Tensor) -> Tensor:
    x.register_hook(scaled)  # type: ignore[no-untyped-call]
    return x


def by_graph(x: Tensor) -> Tensor:
    return Scaled.apply(x)  # type: ignore[no-any-return]


def gradients(name: str, where: str, change: Change, *, on_features: bool) -> list[Tensor]:
    torch.manual_seed(0)
    # Few rows and wide layers: the way by the gradients of the layers' outputs pays.
    layers = nn.ModuleList(nn.Linear(a, b) for a, b in ((32, 64), (64, 64), (64, 48)))
    heads = nn.ModuleDict({task: nn.Linear(48, 2) for task in TASKS})
    strategy = mtlweight.build(name, TASKS)
    for _ in TASKS:  # some take a turn for each
        z = torch.randn(12, 32)
        for i, layer in enumerate(layers):
            z = layer(z)
            z = (change(z) if where == f"layer {i}" else z).tanh()
        losses = {}
        for i, task in enumerate(TASKS):
            out = heads[task](z)
            out = change(out) if where == "head" and i % 2 else out
            losses[task] = (out - i).square().mean()
        parameters = [*layers.parameters(), *heads.parameters()]
        for parameter in parameters:
            parameter.grad = None
        strategy(losses, shared=z if on_features else None).backward()
    return [p.grad for p in parameters if p.grad is not None]


@pytest.mark.parametrize("on_features", [False, True], ids=["parameters", "features"])
@pytest.mark.parametrize("where", ["layer 0", "layer 1", "layer 2", "head"])
@pytest.mark.parametrize("name", READING)
def test_hooks_of_activations_count(name: str, where: str, on_features: bool) -> None:
    found = gradients(name, where, by_hook, on_features=on_features)
    wanted = gradients(name, where, by_graph, on_features=on_features)
    assert len(found) == len(wanted)
    plain = gradients(name, where, lambda x: x, on_features=on_features)
    assert any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(wanted, plain, strict=True))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))
