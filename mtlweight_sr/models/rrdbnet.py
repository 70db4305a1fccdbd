"""RRDBNet, the generator of ESRGAN and Real-ESRGAN."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlweight_sr.models.initialization import check_sizes, scaled_kaiming_


class _DenseBlock(nn.Module):
    """Five convolutions, each reading everything before it; 0.2 of the last is added."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, growth, 3, padding=1)
        self.conv2 = nn.Conv2d(channels + growth, growth, 3, padding=1)
        self.conv3 = nn.Conv2d(channels + 2 * growth, growth, 3, padding=1)
        self.conv4 = nn.Conv2d(channels + 3 * growth, growth, 3, padding=1)
        self.conv5 = nn.Conv2d(channels + 4 * growth, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        seen = features
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = torch.cat([seen, F.leaky_relu(convolution(seen), 0.2)], dim=1)
        return features + 0.2 * cast(Tensor, self.conv5(seen))


class _ResidualInResidualBlock(nn.Module):
    """Three dense blocks; 0.2 of their outcome is added."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = _DenseBlock(channels, growth)
        self.rdb2 = _DenseBlock(channels, growth)
        self.rdb3 = _DenseBlock(channels, growth)

    def forward(self, features: Tensor) -> Tensor:
        return features + 0.2 * cast(Tensor, self.rdb3(self.rdb2(self.rdb1(features))))


class RRDBNet(nn.Module):
    r"""Residual-in-residual dense blocks between a first and a last convolution.

    A 3x3 convolution, `blocks` blocks of three dense blocks each with a skip around all of them,
    then two times (nearest x2, convolution, LeakyReLU) and two last convolutions; slopes 0.2,
    residuals scaled by 0.2 inside and outside. The dense blocks start at a tenth of their Kaiming
    fan-in scale, the other layers as torch does.

    The body always enlarges by four. For scale 2 the input is first folded by a pixel unshuffle
    of 2 (12 channels at half size), as in Real-ESRGAN x2; an odd height or width is extended by
    one replicated row or column for that, and the output is cropped to exactly twice the input.

    The names in the state dict are BasicSR's (`conv_first`, `body.0.rdb1.conv1`, ..., `conv_body`,
    `conv_up1`, `conv_up2`, `conv_hr`, `conv_last`): the published Real-ESRGAN files load with
    `model.load_state_dict(torch.load(file, weights_only=True)["params_ema"])`.

    Shapes: `[B, 3, h, w]` -> `[B, 3, scale * h, scale * w]`, any `h, w >= 1`; the output is not
    clamped and has the dtype of the parameters.

    Args:
        scale: upscaling factor, 2 or 4 (default).
        channels: width, at least 1; default 64.
        blocks: residual-in-residual blocks, at least 1; default 23 (16,697,987 parameters at
            x4); the published network for drawings has 6 (4,467,779).
        growth: channels that each dense convolution adds, at least 1; default 32.

    Raises:
        ValueError: `scale` is neither 2 nor 4, or a size is below 1.

    Source:
        Wang et al., 2018 (ESRGAN), figures 3 and 4; Wang et al., 2021 (Real-ESRGAN), figure 5.
    """

    def __init__(
        self,
        *,
        scale: Literal[2, 4] = 4,
        channels: int = 64,
        blocks: int = 23,
        growth: int = 32,
    ) -> None:
        super().__init__()
        check_sizes(scale, channels=channels, blocks=blocks, growth=growth)
        self.scale = scale
        self.conv_first = nn.Conv2d(12 if scale == 2 else 3, channels, 3, padding=1)
        self.body = nn.Sequential(
            *(_ResidualInResidualBlock(channels, growth) for _ in range(blocks))
        )
        self.conv_body = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_up1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_up2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_hr = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_last = nn.Conv2d(channels, 3, 3, padding=1)
        scaled_kaiming_(module for module in self.body.modules() if isinstance(module, nn.Conv2d))

    def forward(self, images: Tensor) -> Tensor:
        """Enlarge `[B, 3, h, w]` to `[B, 3, scale * h, scale * w]`."""
        height, width = images.shape[-2:]
        if self.scale == 2:
            even = F.pad(images, (0, width % 2, 0, height % 2), mode="replicate")
            images = F.pixel_unshuffle(even, 2)
        features = self.conv_first(images)
        features = features + self.conv_body(self.body(features))
        for convolution in (self.conv_up1, self.conv_up2):
            enlarged = F.interpolate(features, scale_factor=2, mode="nearest")
            features = F.leaky_relu(convolution(enlarged), 0.2)
        output = self.conv_last(F.leaky_relu(self.conv_hr(features), 0.2))
        return cast(Tensor, output[..., : self.scale * height, : self.scale * width])
