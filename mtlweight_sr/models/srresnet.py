"""SRResNet without batch normalisation (MSRResNet)."""

from __future__ import annotations

from typing import Literal, cast

from torch import Tensor, nn
from torch.nn import functional as F

from mtlweight_sr.models.initialization import check_sizes, scaled_kaiming_


class _ResidualBlock(nn.Module):
    """x + conv2(relu(conv1(x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        return features + cast(Tensor, self.conv2(F.relu(self.conv1(features))))


class SRResNet(nn.Module):
    r"""SRResNet without batch normalisation, which adds the bilinear enlargement of its input.

    $f(x) = g(x) + \mathrm{bilinear}_{s}(x)$; $g$ is a 3x3 convolution, `blocks` residual blocks
    (conv, ReLU, conv), one conv + pixel shuffle by 2 per factor of two, and two last
    convolutions, with LeakyReLU of slope 0.1 between them. Every layer starts at a fraction of its
    Kaiming fan-in scale, the last at a tenth, so the untrained network is close to bilinear
    interpolation.

    The names in the state dict are BasicSR's for `MSRResNet` (`conv_first`, `body.0.conv1`, ...,
    `upconv1`, `upconv2`, `conv_hr`, `conv_last`): its published files load with
    `model.load_state_dict(torch.load(file, weights_only=True)["params"])`.

    Shapes: `[B, 3, h, w]` -> `[B, 3, scale * h, scale * w]`, any `h, w >= 1`; the output is not
    clamped and has the dtype of the parameters.

    Args:
        scale: upscaling factor, 2 or 4 (default).
        channels: width, at least 1; default 64.
        blocks: residual blocks, at least 1; default 16. The defaults have 1,517,571 parameters.
        initial_scale: the fraction at which all layers but the last start, above 0; default 0.1,
            which takes hundreds of steps to leave. Trainings of minutes do better with 0.4 (ours).

    Raises:
        ValueError: `scale` is neither 2 nor 4, or a size or `initial_scale` is too small.

    Source:
        Ledig et al., 2017 (SRResNet), in the form without batch normalisation that
        Wang et al., 2018 (ESRGAN) and BasicSR use.
    """

    def __init__(
        self,
        *,
        scale: Literal[2, 4] = 4,
        channels: int = 64,
        blocks: int = 16,
        initial_scale: float = 0.1,
    ) -> None:
        super().__init__()
        check_sizes(scale, channels=channels, blocks=blocks)
        if not 0 < initial_scale < float("inf"):
            raise ValueError(f"`initial_scale` must be above 0 and finite, got {initial_scale!r}.")
        self.scale = scale
        self.conv_first = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.Sequential(*(_ResidualBlock(channels) for _ in range(blocks)))
        self.upconv1 = nn.Conv2d(channels, 4 * channels, 3, padding=1)
        if scale == 4:
            self.upconv2 = nn.Conv2d(channels, 4 * channels, 3, padding=1)
        self.conv_hr = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_last = nn.Conv2d(channels, 3, 3, padding=1)
        *others, last = (module for module in self.modules() if isinstance(module, nn.Conv2d))
        scaled_kaiming_(others, initial_scale)
        scaled_kaiming_([last])

    def forward(self, images: Tensor) -> Tensor:
        """Enlarge `[B, 3, h, w]` to `[B, 3, scale * h, scale * w]`."""
        features = self.body(F.leaky_relu(self.conv_first(images), 0.1))
        upscalers = [self.upconv1, self.upconv2] if self.scale == 4 else [self.upconv1]
        for upscaler in upscalers:
            features = F.leaky_relu(F.pixel_shuffle(upscaler(features), 2), 0.1)
        residual = self.conv_last(F.leaky_relu(self.conv_hr(features), 0.1))
        enlarged = F.interpolate(
            images, scale_factor=self.scale, mode="bilinear", align_corners=False
        )
        return cast(Tensor, residual + enlarged)
