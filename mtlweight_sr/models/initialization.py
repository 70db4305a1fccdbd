"""What the networks share: the small initial weights and the check of their sizes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def scaled_kaiming_(convolutions: Iterable[nn.Conv2d], scale: float = 0.1) -> None:
    r"""Draw weights from $N(0, 2 s^2 / \mathrm{fan\_in})$ and set biases to zero, in place.

    A residual branch that starts near zero lets deep networks without normalisation train.
    Draws come from torch's default generator: `torch.manual_seed` fixes them.

    Args:
        convolutions: the layers to initialise.
        scale: the factor $s$ on the Kaiming fan-in draw, default 0.1.

    Source:
        ESRGAN (Wang et al., 2018), section 3.1, "smaller initialization".
    """
    with torch.no_grad():
        for convolution in convolutions:
            nn.init.kaiming_normal_(convolution.weight, mode="fan_in", nonlinearity="relu")
            convolution.weight.mul_(scale)
            if convolution.bias is not None:
                convolution.bias.zero_()


def check_sizes(scale: int, **counts: int) -> None:
    """Refuse a scale other than 2 and 4, and counts below one.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    if scale not in (2, 4):
        raise ValueError(f"`scale` must be 2 or 4, got {scale!r}.")
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"`{name}` must be an integer of at least 1, got {count!r}.")
