"""Mixed precision, loss scaling and accumulation stay the training loop's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contract.strategies import (
    CASES,
    TASKS,
    Case,
    Network,
    batch,
    gradient_now,
    losses_of,
    metrics_of,
    same_bits,
    snapshot,
)

SCALE = 65536.0


def warm(case: Case) -> tuple[Network, Any]:
    network, strategy = Network(), case.build(TASKS)
    for step in range(2):
        _, losses = losses_of(network, batch(step))
        strategy(losses)
        strategy.end_epoch(metrics_of(TASKS, 0.02 * step))
    return network, strategy


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_scaled_scalar_scales_the_gradient_alone(case: Case) -> None:
    gradients, weights = [], []
    for scale in (1.0, SCALE):
        network, strategy = warm(case)
        with torch.autocast("cpu", torch.bfloat16):
            _, losses = losses_of(network, batch(7))
            total = strategy(losses)
        assert total.dtype == torch.float32
        (scale * total).backward()
        gradients.append(gradient_now(network.parameters()))
        weights.append(strategy.weights)
        assert strategy.weights.dtype == torch.float32
    assert torch.equal(weights[0], weights[1])
    torch.testing.assert_close(gradients[1], SCALE * gradients[0], rtol=1e-2, atol=1e-2)
    cosine = torch.nn.functional.cosine_similarity(gradients[0], gradients[1], dim=0)
    assert cosine > 1 - 1e-4


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_autocast_does_not_reach_the_weights(case: Case, inside: bool) -> None:
    """Called within autocast or after it, from the same losses: the same bits."""
    network, strategy = warm(case)
    with torch.autocast("cpu", torch.bfloat16):
        _, losses = losses_of(network, batch(7))
        losses = {task: loss.float() for task, loss in losses.items()}
        if inside:
            total = strategy(losses)
    if not inside:
        total = strategy(losses)
    total.backward()
    found = (gradient_now(network.parameters()), strategy.weights)
    twin_network, twin = warm(case)
    with torch.autocast("cpu", torch.bfloat16):
        _, losses = losses_of(twin_network, batch(7))
    twin({task: loss.float() for task, loss in losses.items()}).backward()
    assert torch.equal(found[0], gradient_now(twin_network.parameters()))
    assert torch.equal(found[1], twin.weights)


@pytest.mark.parametrize("case", [c for c in CASES if c.weights_degree is not None], ids=str)
def test_scaled_losses_have_weights_of_their_degree(case: Case) -> None:
    """Where the loop scales the losses, and not the scalar: the same weights, or 1 / scale."""
    weights = []
    for scale in (1.0, SCALE):
        network, strategy = Network(), case.build(TASKS)
        for step in range(3):
            _, losses = losses_of(network, batch(step))
            strategy({task: scale * loss for task, loss in losses.items()})
            strategy.end_epoch(metrics_of(TASKS))
        _, losses = losses_of(network, batch(9))
        strategy({task: scale * loss for task, loss in losses.items()})
        weights.append(strategy.weights * scale ** -(case.weights_degree or 0))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_grad_scaler(case: Case) -> None:
    """With a scaler: the parameters of training without one."""
    ends = []
    for scaled in (False, True):
        network, strategy = Network(), case.build(TASKS)
        optimizer = torch.optim.SGD(network.parameters(), 0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, enabled=scaled)
        for step in range(4):
            optimizer.zero_grad()
            _, losses = losses_of(network, batch(step))
            scaler.scale(strategy(losses)).backward()
            scaler.step(optimizer)
            scaler.update()
        ends.append(network.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_accumulation_adds_up(case: Case) -> None:
    """Two backward passes of halves add the mean of the gradients that each would give."""
    network, strategy = warm(case)
    twin = copy.deepcopy(strategy)
    alone = []
    for step in (5, 6):
        network.zero_grad()
        _, losses = losses_of(network, batch(step))
        twin(losses).backward()
        alone.append(gradient_now(network.parameters()))
    network.zero_grad()
    for step in (5, 6):
        _, losses = losses_of(network, batch(step))
        (strategy(losses) / 2).backward()
    mean = (alone[0] + alone[1]) / 2
    torch.testing.assert_close(gradient_now(network.parameters()), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_calls_then_one_backward(case: Case) -> None:
    network, strategy = warm(case)
    twin = copy.deepcopy(strategy)
    for step in (5, 6):
        _, losses = losses_of(network, batch(step))
        twin(losses).backward()
    wanted = gradient_now(network.parameters())
    network.zero_grad()
    first = strategy(losses_of(network, batch(5))[1])
    second = strategy(losses_of(network, batch(6))[1])
    strategy.end_epoch(metrics_of(TASKS))  # what comes later must not change what was returned
    (first + second).backward()
    torch.testing.assert_close(gradient_now(network.parameters()), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_calls_on_one_graph(case: Case) -> None:
    """A call keeps the graph: the losses can be read again, by the loop or by another strategy."""
    network, strategy = warm(case)
    twin = copy.deepcopy(strategy)
    _, losses = losses_of(network, batch(5))
    strategy(losses)
    twin(losses).backward(retain_graph=True)
    wanted = gradient_now(network.parameters())
    network.zero_grad()
    sum(losses.values(), torch.zeros(())).backward()
    assert wanted.isfinite().all()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_retain_graph(case: Case) -> None:
    network, strategy = warm(case)
    _, losses = losses_of(network, batch(5))
    total = strategy(losses)
    total.backward(retain_graph=True)
    once = gradient_now(network.parameters())
    total.backward()
    torch.testing.assert_close(gradient_now(network.parameters()), 2 * once)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_term_of_the_users_own(case: Case) -> None:
    """The scalar is an ordinary tensor: a regulariser may be added, of shared parameters too."""
    network, strategy = warm(case)
    twin = copy.deepcopy(strategy)

    def penalty() -> Tensor:
        return sum((p.square().sum() for p in network.parameters()), torch.zeros(()))

    _, losses = losses_of(network, batch(5))
    twin(losses).backward()
    wanted = gradient_now(network.parameters())
    wanted = wanted + 0.2 * torch.cat([p.detach().reshape(-1) for p in network.parameters()])
    network.zero_grad()
    _, losses = losses_of(network, batch(5))
    (strategy(losses) + 0.1 * penalty()).backward()
    torch.testing.assert_close(
        gradient_now(network.parameters()), wanted.double(), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parameter_hooks_fire_once(case: Case) -> None:
    """Distributed and sharded wrappers hang on the accumulation of each parameter's gradient, and
    masks and clips on the gradient before it."""
    network, strategy = warm(case)
    fired: dict[str, int] = {}
    for name, parameter in network.named_parameters():

        def count(_: Tensor, name: str = name) -> None:
            fired[name] = fired.get(name, 0) + 1

        parameter.register_hook(count)
        parameter.register_post_accumulate_grad_hook(count)
    _, losses = losses_of(network, batch(5))
    total = strategy(losses)
    assert not fired
    assert all(parameter.grad is None for parameter in network.parameters())
    total.backward()
    assert fired == {name: 2 for name, _ in network.named_parameters()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_overflow_in_the_backward_leaves_the_state_alone(case: Case) -> None:
    """The scaler's overflow happens after the call: state and weights were made before it."""
    network, strategy = warm(case)
    _, losses = losses_of(network, batch(5))
    total = strategy(losses)
    before = snapshot(strategy)
    (total * 1e38 * 1e10).backward()
    assert not gradient_now(network.parameters()).isfinite().all()
    assert same_bits(snapshot(strategy), before)
