from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mtlweight import EnCodec
from mtlweight.options import OptionError
from tests.contract.strategies import plane, solve


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def step_on_output(strategy: EnCodec, gradients: Tensor, names: Any = None) -> Tensor:
    """Returns what the output `[B, ...]` gets of losses with gradients `[T, B, ...]` there."""
    leaf = torch.zeros_like(gradients[0]).requires_grad_()
    output = leaf * 1.0
    losses = [1.0 + (g * output).sum() for g in gradients]
    given = losses if names is None else dict(zip(names, losses, strict=True))
    strategy(given, shared=output).backward()
    assert leaf.grad is not None
    return leaf.grad


def test_opposing_losses_cancel_whatever_their_scales() -> None:
    """The authors' own check: 99 without the balancer, 0 with it."""
    x = torch.zeros(1, requires_grad=True)
    output = x * 1.0
    losses = [(output - 1).abs().mean(), 100 * (output + 1).abs().mean()]
    (plain,) = torch.autograd.grad(sum(losses, torch.zeros(())), x, retain_graph=True)
    assert plain.item() == pytest.approx(99)
    EnCodec(2)(losses, shared=output).backward()
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(0, abs=1e-5)


def test_each_loss_moves_an_item_by_its_ratio() -> None:
    gradients = random(3, 5, 2, 4) * torch.tensor([1e-3, 1.0, 1e4]).double()[:, None, None, None]
    strategy = EnCodec(3, ratios=[1, 2, 5], total_norm=3.0)
    d = step_on_output(strategy, gradients)
    lengths = gradients.flatten(2).norm(dim=2).mean(1)
    moved = strategy.weights.double() * lengths
    torch.testing.assert_close(
        moved, torch.tensor([1.0, 2.0, 5.0]).double() * 3 / 8, rtol=1e-6, atol=0
    )
    wanted = torch.einsum("i,i...->...", strategy.weights.double(), gradients)
    torch.testing.assert_close(d, wanted, rtol=1e-6, atol=1e-7)


def test_items_are_told_apart_where_heads_are_linear() -> None:
    """Then the gradients of features are never written out."""
    torch.manual_seed(0)
    trunk, heads = nn.Linear(8, 256), nn.ModuleList(nn.Linear(256, width) for width in (1, 3, 2))
    z = trunk(torch.randn(64, 8))
    losses = [(i + 1) * head(z).square().mean() for i, head in enumerate(heads)]
    lengths = [
        torch.autograd.grad(loss, z, retain_graph=True)[0].norm(dim=1).mean() for loss in losses
    ]
    strategy = EnCodec(3)
    strategy(losses, shared=z)
    torch.testing.assert_close(strategy.weights, 1 / (3 * torch.stack(lengths)), rtol=1e-5, atol=0)


def test_the_mean_length_forgets_and_is_not_biased() -> None:
    strategy, beta = EnCodec(("a", "b", "c"), beta=0.7), 0.7
    sums, counts = torch.zeros(3).double(), torch.zeros(3).double()
    for step in range(7):
        present = [[0, 1, 2], [0, 2], [1], [0, 1, 2]][step % 4]
        gradients = random(3, 4, 3, seed=step)[present]
        for place, i in enumerate(present):
            sums[i] = beta * sums[i] + gradients[place].norm(dim=1).mean()
            counts[i] = beta * counts[i] + 1
        step_on_output(strategy, gradients, [strategy.tasks[i] for i in present])
        wanted = torch.zeros(3).double()
        wanted[present] = (counts / sums)[present] / len(present)
        torch.testing.assert_close(strategy.weights.double(), wanted, rtol=1e-5, atol=0)


def test_outputs_of_the_same_items_count_as_one() -> None:
    gradients = random(2, 6, 5)
    whole, parts = EnCodec(2), EnCodec(2)
    step_on_output(whole, gradients)
    leaf = torch.zeros(6, 5, dtype=torch.float64).requires_grad_()
    outputs = [leaf[:, :2] * 1.0, leaf[:, 2:].reshape(6, 3, 1) * 1.0]
    losses = [
        (g[:, :2] * outputs[0]).sum() + (g[:, 2:, None] * outputs[1]).sum() for g in gradients
    ]
    parts(losses, shared=outputs).backward()
    torch.testing.assert_close(parts.weights, whole.weights)


def test_outputs_of_unequal_batches_are_refused() -> None:
    leaf = torch.ones(5, dtype=torch.float64).requires_grad_()
    outputs = [leaf[:2] * 1.0, leaf[2:] * 1.0]
    losses = [(i + outputs[0].sum() * outputs[1].sum()) for i in range(2)]
    strategy = EnCodec(2)
    with pytest.raises(ValueError, match=r"\[2, 3\] items"):
        strategy(losses, shared=outputs)
    assert strategy.step == 0
    assert not strategy.counts.any()


def test_parameters_count_as_one_item() -> None:
    rows = random(3, 6)
    d, w = solve(EnCodec(3), rows)
    torch.testing.assert_close(w, 1 / 3 / rows.norm(dim=1), rtol=1e-6, atol=0)
    torch.testing.assert_close(d, w @ rows, rtol=1e-6, atol=1e-7)


def test_a_parameter_of_a_loss_is_trained_with_its_weight() -> None:
    """As the scale of a learned loss: it is above the output, and the loss is weighted whole."""
    own = torch.tensor(2.0, requires_grad=True)
    output = torch.ones(3, 2, requires_grad=True) * 1.0
    strategy = EnCodec(2)
    strategy([own * output.square().mean(), output.sum()], shared=output).backward()
    assert own.grad is not None
    assert own.grad.item() == pytest.approx(strategy.weights[0].item())


def test_a_loss_that_is_off_keeps_its_mean_length() -> None:
    strategy, twin = EnCodec(2), EnCodec(2)
    gradients = random(2, 4, 3)
    off = gradients * torch.tensor([1.0, 0.0]).double()[:, None, None]
    for step in range(5):
        step_on_output(strategy, gradients if step in (0, 4) else off)
        if step in (0, 4):
            step_on_output(twin, gradients)
    torch.testing.assert_close(strategy.weights, twin.weights)


def test_a_loss_that_was_never_on_has_the_mean_weight() -> None:
    strategy = EnCodec(3)
    gradients = random(3, 4, 3)
    gradients[1] = 0
    step_on_output(strategy, gradients)
    a, b, c = strategy.weights.tolist()
    assert b == pytest.approx((a + c) / 2)
    strategy = EnCodec(3, ratios=[1, 1, 2])
    step_on_output(strategy, 0 * gradients)
    assert strategy.weights.tolist() == pytest.approx([0.25, 0.25, 0.5])


@given(st.lists(st.integers(-14, 14), min_size=3, max_size=3), st.booleans())
def test_the_scale_of_a_loss_does_not_matter(exponents: list[int], single: bool) -> None:
    """Also where the squares of the gradients leave the range of float32."""
    scales = torch.tensor([10.0**e for e in exponents]).double()[:, None, None]
    gradients = random(3, 4, 3, seed=1)
    if single:
        gradients, scales = gradients.float(), scales.float()
    d = step_on_output(EnCodec(3), gradients)
    scaled = step_on_output(EnCodec(3), scales * gradients)
    torch.testing.assert_close(scaled, d, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e25])
def test_lengths_out_of_the_range_of_squares(scale: float) -> None:
    rows = random(3, 6).float()
    theta, losses = plane(scale * rows)
    EnCodec(3)(losses).backward()
    assert theta.grad is not None
    wanted = (rows / rows.norm(dim=1, keepdim=True)).mean(0)
    torch.testing.assert_close(theta.grad, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ratios", [[1, 0, 1], [1, -1, 1], [1, float("nan"), 1], [1, 1]])
def test_bad_ratios_are_refused(ratios: list[float]) -> None:
    with pytest.raises(OptionError, match="ratio"):
        EnCodec(3, ratios=ratios)


def test_a_network_is_trained_through_its_output() -> None:
    """Pixel and feature losses of a small generator: the gradient is that of the weighted sum."""
    generator = nn.Conv2d(1, 2, 3, padding=1).double()
    image = random(4, 1, 6, 6)
    output = generator(image)
    losses = {"pixel": output.abs().mean(), "tv": 1e3 * output.diff(dim=-1).square().mean()}
    rows = [torch.autograd.grad(x, generator.weight, retain_graph=True)[0] for x in losses.values()]
    strategy = EnCodec(("pixel", "tv"), ratios={"pixel": 3, "tv": 1})
    strategy(losses, shared=output).backward()
    w = strategy.weights.double()
    assert generator.weight.grad is not None
    torch.testing.assert_close(generator.weight.grad, w[0] * rows[0] + w[1] * rows[1])
