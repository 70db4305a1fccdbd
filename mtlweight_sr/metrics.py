"""PSNR, SSIM and LPIPS as super-resolution papers compute them, one number per image."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

Backbone = Literal["alex", "vgg", "squeeze"]
_CACHED_AS: dict[str, str] = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}


def rgb_to_y(images: Tensor) -> Tensor:
    r"""The luma of ITU-R BT.601 with studio swing, not rounded.

    $Y = 16 + 65.481 R + 128.553 G + 24.966 B$, so black is 16 and white 235. Metrics on a
    full-range luma are $20 \log_{10}(255 / 219) = 1.32$ dB lower: the two never mix in a table.

    Args:
        images: RGB in [0, 1], `[B, 3, H, W]`, floating point.

    Returns:
        `[B, 1, H, W]` on the scale of 255, dtype kept.
    """
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    return 16 + (65.481 * red + 128.553 * green + 24.966 * blue)


def quantize(images: Tensor) -> Tensor:
    """Values as a saved 8-bit file holds them: clamped to [0, 1], rounded to multiples of 1/255.

    Args:
        images: any floating-point tensor in [0, 1]; halves are rounded to even.

    Returns:
        The same shape in float64, so that each level is exact to the last bit.
    """
    exact = images if images.dtype == torch.float64 else images.float()
    return exact.clamp(0, 1).mul(255).round().double() / 255


def psnr_y(sr: Tensor, hr: Tensor, border: int) -> Tensor:
    r"""Peak signal-to-noise ratio of the luma: $10 \log_{10}(255^2 / \mathrm{MSE})$ in dB.

    Both images are rounded to 8 bits, converted by `rgb_to_y` and cropped by `border` on each
    side; the mean squared error is taken in float64, per image. Average the values of several
    images, do not pool their errors.

    Args:
        sr: restored images, `[B, 3, H, W]` in [0, 1].
        hr: the originals, same shape.
        border: pixels left out on each side; papers use the scale.

    Returns:
        `[B]` in float64, infinite for identical images.

    Raises:
        TypeError: an image is not floating point.
        ValueError: the shapes differ, are not `[B, 3, H, W]`, or `border` leaves nothing.

    Source:
        The protocol of the field, as in BasicSR with `test_y_channel` and `crop_border`.
    """
    restored, original = _cropped_luma(sr, hr, border, smallest=1)
    error = (restored - original).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255**2 / error)


def ssim_y(sr: Tensor, hr: Tensor, border: int) -> Tensor:
    r"""Structural similarity of the luma, averaged over the positions where the window fits.

    $\frac{(2 \mu_x \mu_y + C_1)(2 \sigma_{xy} + C_2)}
    {(\mu_x^2 + \mu_y^2 + C_1)(\sigma_x^2 + \sigma_y^2 + C_2)}$ with an 11 x 11 Gaussian window of
    sigma 1.5, population variances, $C_1 = (0.01 \cdot 255)^2$ and $C_2 = (0.03 \cdot 255)^2$.

    Args:
        sr: restored images, `[B, 3, H, W]` in [0, 1].
        hr: the originals, same shape.
        border: pixels left out on each side; papers use the scale.

    Returns:
        `[B]` in float64, 1 for identical images.

    Raises:
        TypeError: an image is not floating point.
        ValueError: the shapes differ, are not `[B, 3, H, W]`, or less than 11 x 11 pixels remain.

    Source:
        Wang et al., 2004, equation 13, without the downsampling of the authors' script.
    """
    restored, original = _cropped_luma(sr, hr, border, smallest=_WINDOW)
    mean_x, mean_y = _window_mean(restored), _window_mean(original)
    variance_x = _window_mean(restored.square()) - mean_x.square()
    variance_y = _window_mean(original.square()) - mean_y.square()
    covariance = _window_mean(restored * original) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return (luminance * structure).mean(dim=(1, 2, 3))


class BackboneMissing(FileNotFoundError):  # noqa: N818 - it says what is missing
    """No file with the features that LPIPS compares is at hand; the message says which to give."""


class PerceptualDistance(nn.Module):
    r"""LPIPS v0.1: the weighted distance between deep features of two images; smaller is better.

    Nothing is ever downloaded. The linear heads come with the `lpips` package; the features are
    torchvision's ImageNet weights, read from `backbone` or, where none is given, from the folder
    `torch.hub.get_dir()/checkpoints` in which torchvision keeps what it has downloaded.

    Values are compared as they are: pass `quantize(images).float()` to measure what a saved file
    would give. Papers differ in the network (`alex` or `vgg`): the two scales never mix in a
    table.

    Args:
        net: `"alex"` (default), `"vgg"` or `"squeeze"`.
        backbone: a state-dict file of torchvision's `alexnet`, `vgg16` or `squeezenet1_1`, of
            the whole network (`features.0.weight`, ...; the classifier is left out) or of its
            `.features` (`0.weight`, ...).

    Raises:
        BackboneMissing: `backbone` is None and no file is in the cache of torchvision.
        FileNotFoundError: the given `backbone` does not exist.
        ValueError: `net` is unknown, or the file holds other keys or shapes than the network.

    Source:
        Zhang et al., 2018, equation 1; heads and networks of the `lpips` package.
    """

    def __init__(self, net: Backbone = "alex", *, backbone: Path | str | None = None) -> None:
        super().__init__()
        if net not in _CACHED_AS:
            raise ValueError(f"`net` must be one of {', '.join(_CACHED_AS)}, got {net!r}.")
        file = _find_backbone(net) if backbone is None else Path(backbone)
        if not file.is_file():
            raise FileNotFoundError(f"`backbone` must be a file of weights, got {str(file)!r}.")
        self.net = net
        self._lpips = _lpips_without_features(net)
        _load_features(cast(nn.Module, self._lpips.net), file)
        self.requires_grad_(False).eval()

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """The distance between `sr` and `hr`, both `[B, 3, H, W]` in [0, 1], as `[B]`."""
        _check_pair(sr, hr)
        return cast(Tensor, self._lpips(2 * sr - 1, 2 * hr - 1)).flatten()

    def train(self, mode: bool = True) -> PerceptualDistance:
        """Stay in evaluation mode: the heads of LPIPS have dropout, a metric must not."""
        return super().train(False)


def _check_pair(sr: Tensor, hr: Tensor) -> None:
    for name, images in (("sr", sr), ("hr", hr)):
        if not images.is_floating_point():
            raise TypeError(
                f"`{name}` must be floating point in [0, 1], got {images.dtype}; "
                "divide 8-bit images by 255."
            )
    if sr.shape != hr.shape or sr.ndim != 4 or sr.shape[1] != 3:
        raise ValueError(
            f"`sr` and `hr` must have one shape [B, 3, H, W], got {list(sr.shape)} and "
            f"{list(hr.shape)}."
        )


def _cropped_luma(sr: Tensor, hr: Tensor, border: int, *, smallest: int) -> tuple[Tensor, Tensor]:
    _check_pair(sr, hr)
    height, width = sr.shape[-2] - 2 * border, sr.shape[-1] - 2 * border
    if border < 0 or min(height, width) < smallest:
        raise ValueError(
            f"`border` must be at least 0 and leave {smallest} x {smallest} pixels or more, got "
            f"{border} for images of {sr.shape[-2]} x {sr.shape[-1]}."
        )
    inside = (..., slice(border, border + height), slice(border, border + width))
    return rgb_to_y(quantize(sr))[inside], rgb_to_y(quantize(hr))[inside]


def _window_mean(values: Tensor) -> Tensor:
    """The Gaussian-weighted mean around each position where the window fits, `[B, 1, H, W]`."""
    offsets = torch.arange(_WINDOW, dtype=values.dtype, device=values.device) - _WINDOW // 2
    taps = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    taps = taps / taps.sum()
    return F.conv2d(F.conv2d(values, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))


def _find_backbone(net: str) -> Path:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    found = sorted(folder.glob(f"{_CACHED_AS[net]}-*.pth"))
    if not found:
        raise BackboneMissing(
            f"LPIPS with net={net!r} needs the ImageNet weights of torchvision's "
            f"{_CACHED_AS[net]}, and {str(folder)!r} holds no {_CACHED_AS[net]}-*.pth; pass "
            f"`backbone=` the path of that state-dict file, or put it into this folder."
        )
    return found[-1]


def _lpips_without_features(net: str) -> nn.Module:
    """LPIPS with its trained heads and random features; torch's generator stays as it was."""
    # Here, not at the top: lpips imports torchvision, which PSNR and SSIM do without.
    import lpips

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", "The parameter 'pretrained' is deprecated", UserWarning)
        warnings.filterwarnings(
            "ignore", "Arguments other than a weight enum or `None`", UserWarning
        )
        warnings.filterwarnings("ignore", "You are using `torch.load` with", FutureWarning)
        return cast(nn.Module, lpips.LPIPS(net=net, pnet_rand=True, verbose=False))


def _load_features(network: nn.Module, file: Path) -> None:
    """Copy torchvision's feature weights into the slices of lpips, strictly."""
    state = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{str(file)!r} must hold a state dict of tensors.")
    # A file of the whole network prefixes its keys; what has no prefix there is the classifier.
    whole = {key[9:]: value for key, value in state.items() if key.startswith("features.")}
    given = whole or state
    # lpips cuts the features into slices but keeps their numbers: slice2.3.weight is 3.weight.
    wanted = {key.split(".", 1)[1]: value for key, value in network.named_parameters()}
    if given.keys() != wanted.keys():
        raise ValueError(
            f"{str(file)!r} does not fit the network: missing {sorted(wanted.keys() - given)}, "
            f"unexpected {sorted(given.keys() - wanted)}."
        )
    for key, parameter in wanted.items():
        if given[key].shape != parameter.shape:
            raise ValueError(
                f"{str(file)!r} does not fit the network: {key!r} must have shape "
                f"{list(parameter.shape)}, got {list(given[key].shape)}."
            )
    with torch.no_grad():
        for key, parameter in wanted.items():
            parameter.copy_(given[key])
