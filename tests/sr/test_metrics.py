from __future__ import annotations

import math
import os
from pathlib import Path

import kornia
import numpy as np
import pytest
import skimage.data
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.metrics import structural_similarity
from torch.nn import functional as F

from mtlweight_sr.metrics import (
    BackboneMissing,
    PerceptualDistance,
    psnr_y,
    quantize,
    rgb_to_y,
    ssim_y,
)

WEIGHTS = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Two photographs and blurred, noisy versions of them that leave [0, 1]."""
    photographs = [skimage.data.chelsea()[:120, :150], skimage.data.coffee()[100:220, 200:350]]
    hr = torch.stack([torch.from_numpy(p.copy()).permute(2, 0, 1) for p in photographs]) / 255
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(hr.shape, generator=generator)
    return F.avg_pool2d(hr, 3, 1, 1) + noise, hr


def levels(images: torch.Tensor) -> np.ndarray:
    return np.rint(np.clip(images.numpy(), 0, 1) * np.float32(255)).astype(np.uint8)


def numpy_y(image: np.ndarray) -> np.ndarray:
    weights = np.array([65.481, 128.553, 24.966]) / 255
    return np.tensordot(weights, image.astype(np.float64), axes=1) + 16


def test_luma_has_studio_swing():
    corners = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    y = rgb_to_y(corners.double()[:, :, None, None]).flatten()
    expected = torch.tensor([16.0, 235.0, 81.481, 144.553, 40.966], dtype=torch.float64)
    torch.testing.assert_close(y, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("level", [1, 7, 100])
def test_psnr_of_a_uniform_offset_has_a_closed_form(level):
    hr = torch.full((1, 3, 20, 24), 50 / 255)
    sr = torch.full((1, 3, 20, 24), (50 + level) / 255)
    expected = 20 * math.log10(255 / (level * 219 / 255))
    assert psnr_y(sr, hr, 4).item() == pytest.approx(expected, abs=1e-10)


def test_ssim_of_constant_images_is_the_luminance_term():
    hr, sr = torch.full((1, 3, 20, 24), 51 / 255), torch.full((1, 3, 20, 24), 204 / 255)
    x, y = 16 + 219 * 0.2, 16 + 219 * 0.8
    expected = (2 * x * y + 6.5025) / (x**2 + y**2 + 6.5025)
    assert ssim_y(sr, hr, 4).item() == pytest.approx(expected, abs=1e-10)


def test_identical_images(pair):
    _, hr = pair
    assert psnr_y(hr, hr, 4).tolist() == [math.inf, math.inf]
    torch.testing.assert_close(ssim_y(hr, hr, 4), torch.ones(2).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("border", [0, 2, 4])
def test_metrics_equal_an_independent_computation(pair, border):
    sr, hr = pair
    for index in range(2):
        x, y = (numpy_y(levels(images[index])) for images in pair)
        inside = (slice(border, 120 - border), slice(border, 150 - border))
        x, y = x[inside], y[inside]
        expected_psnr = 20 * np.log10(255) - 10 * np.log10(np.mean((x - y) ** 2))
        # scikit-image crops its filtered map by the window's radius: the valid region.
        expected_ssim = structural_similarity(
            x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
        )
        assert psnr_y(sr, hr, border)[index].item() == pytest.approx(expected_psnr, abs=1e-8)
        assert ssim_y(sr, hr, border)[index].item() == pytest.approx(expected_ssim, abs=1e-8)


def test_ssim_equals_kornia_on_the_valid_region(pair):
    sr, hr = pair
    x, y = (rgb_to_y(quantize(images))[..., 4:-4, 4:-4] for images in pair)
    expected = kornia.metrics.ssim(x, y, 11, max_val=255.0, eps=0.0, padding="valid")
    torch.testing.assert_close(ssim_y(sr, hr, 4), expected.mean(dim=(1, 2, 3)), atol=1e-8, rtol=0)


def test_one_value_per_image_in_float64_whatever_the_batch(pair):
    sr, hr = pair
    for metric in (psnr_y, ssim_y):
        together = metric(sr, hr, 4)
        assert together.shape == (2,)
        assert together.dtype == torch.float64
        alone = torch.cat([metric(sr[i : i + 1], hr[i : i + 1], 4) for i in range(2)])
        torch.testing.assert_close(together, alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize("metric", [psnr_y, ssim_y])
def test_the_border_is_left_out(pair, metric):
    sr, hr = pair
    damaged = sr.clone()
    damaged[..., :4, :] = damaged[..., -4:, :] = damaged[..., :4] = damaged[..., -4:] = 0
    assert torch.equal(metric(damaged, hr, 4), metric(sr, hr, 4))
    assert (metric(damaged, hr, 3) < metric(sr, hr, 3)).all()


def test_values_are_clamped_and_rounded_before_they_are_compared(pair):
    _, hr = pair
    assert psnr_y(hr + 0.4 / 255, hr, 0).isinf().all()
    white = torch.ones(1, 3, 12, 12)
    assert psnr_y(white * 1.7, white, 0).isinf().all()


@settings(deadline=None, max_examples=50)
@given(st.floats(-0.5, 1.5, width=32))
def test_quantize_gives_the_nearest_of_256_levels(value):
    level = quantize(torch.tensor([value])).item() * 255
    assert level == pytest.approx(round(level), abs=1e-12)
    assert abs(level - 255 * min(max(value, 0), 1)) <= 0.5 + 1e-4


@pytest.mark.parametrize("metric", [psnr_y, ssim_y])
def test_bad_input_is_refused(metric):
    image = torch.rand(1, 3, 16, 16)
    with pytest.raises(TypeError, match=r"`sr` must be floating point .* got torch.uint8"):
        metric(image.byte(), image, 0)
    with pytest.raises(ValueError, match=r"got \[1, 3, 16, 16\] and \[1, 3, 16, 15\]"):
        metric(image, image[..., :15], 0)
    with pytest.raises(ValueError, match=r"one shape \[B, 3, H, W\], got \[3, 16, 16\]"):
        metric(image[0], image[0], 0)
    with pytest.raises(ValueError, match="got 8 for images of 16 x 16"):
        metric(image, image, 8)
    with pytest.raises(ValueError, match="`border` must be at least 0"):
        metric(image, image, -1)


# --- LPIPS -----------------------------------------------------------------------------------


def random_features(net: str) -> dict[str, torch.Tensor]:
    """The state of torchvision's `.features` with seeded random weights."""
    with torch.device("meta"):
        shapes = getattr(torchvision.models, WEIGHTS[net])(weights=None).features.state_dict()
    generator = torch.Generator().manual_seed(0)
    return {
        key: 0.05 * torch.randn(value.shape, generator=generator) for key, value in shapes.items()
    }


def prefixed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    whole = {f"features.{key}": value for key, value in state.items()}
    return whole | {"classifier.1.weight": torch.zeros(2, 2)}


@pytest.mark.parametrize("net", ["alex", "squeeze", "vgg"])
def test_lpips_reads_both_styles_of_keys(net, tmp_path, capsys):
    state = random_features(net)
    torch.save(state, tmp_path / "features.pth")
    torch.save(prefixed(state), tmp_path / "whole.pth")
    sr, hr = torch.rand(2, 2, 3, 64, 72).unbind()
    values = []
    for name in ("features.pth", "whole.pth"):
        before = torch.random.get_rng_state()
        distance = PerceptualDistance(net, backbone=tmp_path / name)
        assert torch.equal(torch.random.get_rng_state(), before)
        values.append(distance(sr, hr))
    assert torch.equal(values[0], values[1])
    assert values[0].shape == (2,)
    assert (values[0] > 0).all()
    assert capsys.readouterr().out == ""


def test_lpips_with_known_features_is_the_formula_of_the_paper(tmp_path):
    torch.save(random_features("alex"), tmp_path / "alex.pth")
    distance = PerceptualDistance("alex", backbone=tmp_path / "alex.pth")
    network = torchvision.models.alexnet(weights=None).features.eval()
    network.load_state_dict(random_features("alex"))
    import lpips

    heads = torch.load(
        Path(lpips.__file__).parent / "weights/v0.1/alex.pth", weights_only=True, map_location="cpu"
    )
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    sr, hr = torch.rand(2, 1, 3, 64, 72).unbind()
    x, y = ((2 * images - 1 - shift) / scale for images in (sr, hr))
    expected, layer = torch.zeros(()), 0
    for module in network[:12]:
        x, y = module(x.clone()), module(y.clone())
        if isinstance(module, torch.nn.ReLU):
            difference = (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square()
            head = heads[f"lin{layer}.model.1.weight"].view(1, -1, 1, 1)
            expected = expected + (difference * head).sum(1).mean()
            layer += 1
    torch.testing.assert_close(distance(sr, hr).squeeze(), expected, rtol=1e-4, atol=1e-6)


def test_lpips_is_a_distance_that_gradients_flow_through(tmp_path):
    torch.save(random_features("alex"), tmp_path / "alex.pth")
    distance = PerceptualDistance("alex", backbone=tmp_path / "alex.pth").train()
    hr = torch.rand(1, 3, 64, 64)
    sr = torch.rand(1, 3, 64, 64, requires_grad=True)
    assert distance(hr, hr).item() == 0
    assert torch.equal(distance(sr, hr), distance(sr, hr))
    torch.testing.assert_close(distance(sr, hr), distance(hr, sr))
    distance(sr, hr).sum().backward()
    assert sr.grad is not None
    assert sr.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in distance.parameters())


def test_lpips_finds_the_file_that_torchvision_has_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(BackboneMissing, match=r"alexnet-\*\.pth; pass `backbone=`"):
        PerceptualDistance("alex")
    torch.save(prefixed(random_features("alex")), tmp_path / "checkpoints/alexnet-owt-7be5.pth")
    assert PerceptualDistance("alex").net == "alex"
    assert issubclass(BackboneMissing, FileNotFoundError)


def test_lpips_refuses_a_file_that_does_not_fit(tmp_path):
    file = tmp_path / "weights.pth"
    with pytest.raises(FileNotFoundError, match=r"weights\.pth") as caught:
        PerceptualDistance("alex", backbone=file)
    assert not isinstance(caught.value, BackboneMissing)
    with pytest.raises(ValueError, match="`net` must be one of alex, vgg, squeeze, got 'resnet'"):
        PerceptualDistance("resnet", backbone=file)
    state = random_features("alex")
    torch.save({k: v for k, v in state.items() if k != "3.bias"}, file)
    with pytest.raises(ValueError, match=r"missing \['3.bias'\], unexpected \[\]"):
        PerceptualDistance("alex", backbone=file)
    torch.save(state | {"99.bias": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"missing \[\], unexpected \['99.bias'\]"):
        PerceptualDistance("alex", backbone=file)
    torch.save(state | {"0.bias": torch.zeros(5)}, file)
    with pytest.raises(ValueError, match=r"'0.bias' must have shape \[64\], got \[5\]"):
        PerceptualDistance("alex", backbone=file)
    torch.save([1, 2], file)
    with pytest.raises(ValueError, match="must hold a state dict of tensors"):
        PerceptualDistance("alex", backbone=file)


@pytest.mark.parametrize(
    ("net", "name", "published"),
    [
        ("alex", "alexnet_features.pth", (0.7219, 0.1376)),
        ("squeeze", "squeezenet1_1_features_delldu.pth", (0.7110, 0.1479)),
    ],
)
def test_lpips_gives_the_published_values(net, name, published):
    folder = os.environ.get("MTLWEIGHT_LPIPS_DIR")
    if folder is None:
        pytest.skip("set MTLWEIGHT_LPIPS_DIR to a folder with the backbones and LPIPS' examples")

    def example(stem: str) -> torch.Tensor:
        with Image.open(Path(folder) / "examples" / f"{stem}.png") as image:
            pixels = np.asarray(image.convert("RGB"))
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255

    distance = PerceptualDistance(net, backbone=Path(folder) / name)
    got = [distance(example("ex_ref"), example(stem)).item() for stem in ("ex_p0", "ex_p1")]
    print(net, got)
    assert got == pytest.approx(published, abs=1e-3)
