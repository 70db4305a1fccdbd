from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mtlweight_sr.models import RRDBNet, SRResNet, available_models, build_model

SMALL = {"srresnet": {"channels": 8, "blocks": 2}, "rrdbnet": {"channels": 8, "blocks": 1}}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def build_small(name: str, scale: int) -> nn.Module:
    return build_model(name, scale, **SMALL[name])


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: SRResNet(), 1_517_571),
        (lambda: SRResNet(scale=2), 1_517_571 - (64 * 256 * 9 + 256)),
        (lambda: RRDBNet(), 16_697_987),
        (lambda: RRDBNet(blocks=6), 4_467_779),
        (lambda: RRDBNet(blocks=6, scale=2), 4_467_779 + 9 * 64 * 9),
    ],
)
def test_parameter_counts_are_the_published_ones(build, expected):
    with torch.device("meta"):
        assert count(build()) == expected


@pytest.mark.parametrize("name", ["srresnet", "rrdbnet"])
@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("size", [(1, 1), (8, 6), (7, 5), (5, 8)])
def test_any_size_is_enlarged_by_exactly_the_scale(name, scale, size):
    model = build_small(name, scale)
    output = model(torch.rand(2, 3, *size))
    assert output.shape == (2, 3, scale * size[0], scale * size[1])
    assert output.isfinite().all()


@pytest.mark.parametrize("scale", [2, 4])
def test_srresnet_without_its_last_layer_is_bilinear_interpolation(scale):
    model = build_small("srresnet", scale)
    nn.init.zeros_(model.conv_last.weight)
    images = torch.rand(1, 3, 7, 9)
    expected = F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
    assert torch.equal(model(images), expected)


def test_rrdbnet_at_scale_two_ignores_the_extension_of_an_odd_input_by_hand():
    model = build_small("rrdbnet", 2)
    images = torch.rand(1, 3, 7, 5)
    extended = torch.cat([images, images[:, :, -1:]], dim=2)
    extended = torch.cat([extended, extended[..., -1:]], dim=3)
    torch.testing.assert_close(model(images), model(extended)[..., :14, :10])


@pytest.mark.parametrize("name", ["srresnet", "rrdbnet"])
@pytest.mark.parametrize("scale", [2, 4])
def test_gradient_reaches_every_parameter_and_the_input(name, scale):
    torch.manual_seed(0)
    model = build_small(name, scale)
    images = torch.rand(1, 3, 6, 7, requires_grad=True)
    model(images).square().mean().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", ["srresnet", "rrdbnet"])
@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_is_kept(name, scale, dtype):
    model = build_small(name, scale).to(dtype)
    assert model(torch.rand(1, 3, 5, 6, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("name", ["srresnet", "rrdbnet"])
def test_same_seed_gives_the_same_network(name):
    def state() -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        return build_small(name, 4).state_dict()

    first, second = state(), state()
    assert all(torch.equal(first[key], second[key]) for key in first)
    torch.manual_seed(4)
    assert not torch.equal(
        build_small(name, 4).state_dict()["conv_first.weight"], first["conv_first.weight"]
    )


def test_initial_weights_are_a_tenth_of_kaiming_fan_in():
    torch.manual_seed(0)
    model = SRResNet(blocks=1)
    expected = 0.1 * (2 / (64 * 9)) ** 0.5
    assert model.body[0].conv1.weight.std().item() == pytest.approx(expected, rel=0.02)
    assert not model.body[0].conv1.bias.any()
    dense = RRDBNet(blocks=1).body[0].rdb1.conv5
    assert dense.weight.std().item() == pytest.approx(0.1 * (2 / (192 * 9)) ** 0.5, rel=0.02)


def test_state_dict_names_are_those_of_the_published_checkpoints():
    pairs = ("weight", "bias")
    srresnet = {
        f"{layer}.{kind}"
        for layer in (
            "conv_first",
            "body.0.conv1",
            "body.0.conv2",
            "upconv1",
            "upconv2",
            "conv_hr",
            "conv_last",
        )
        for kind in pairs
    }
    assert set(build_model("srresnet", 4, blocks=1, channels=4).state_dict()) == srresnet
    dense = [f"body.0.rdb{block}.conv{i}" for block in (1, 2, 3) for i in (1, 2, 3, 4, 5)]
    layers = ["conv_first", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last", *dense]
    rrdbnet = {f"{layer}.{kind}" for layer in layers for kind in pairs}
    assert set(build_model("rrdbnet", 4, blocks=1, channels=4).state_dict()) == rrdbnet


def test_an_unknown_name_lists_what_exists():
    assert available_models() == ("rrdbnet", "srresnet")
    with pytest.raises(ValueError, match="one of rrdbnet, srresnet, got 'edsr'"):
        build_model("edsr", 4)


@pytest.mark.parametrize("name", ["srresnet", "rrdbnet"])
def test_bad_sizes_are_refused(name):
    with pytest.raises(ValueError, match="`scale` must be 2 or 4, got 3"):
        build_model(name, 3)
    with pytest.raises(ValueError, match="`blocks` must be an integer of at least 1, got 0"):
        build_model(name, 4, blocks=0)
    with pytest.raises(ValueError, match=r"`channels` must be .* got 1.5"):
        build_model(name, 4, channels=1.5)
