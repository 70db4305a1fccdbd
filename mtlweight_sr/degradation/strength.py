r"""How strong a row of degradation parameters is: one number for blur, one for noise.

Neither number looks at an image. They order rows by what reaches the LR image, where kernel size
and level of one stage say little.

Source: ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlweight_sr.degradation.columns import NOISE_TYPES
from mtlweight_sr.degradation.kernels import SIZE, stage_kernels
from mtlweight_sr.degradation.parameters import DegradationParameters, StageParameters
from mtlweight_sr.degradation.space import MODES

__all__ = ["effective_blur", "effective_noise", "effective_strength"]

_LUMA = (0.299, 0.587, 0.114)
_MID_GREY, _GRAINS = 0.5, 256
# Mean share of the variance of white noise that survives interpolation at a random phase, both
# directions together.
_BILINEAR, _BICUBIC = (2 / 3) ** 2, 0.69**2


def _sinc_variance(omega: Tensor) -> Tensor:
    """Variance of the Gaussian whose frequency response is one half at the cutoff."""
    return 2 * math.log(2) / omega**2


def _variance(stage: StageParameters, kernels: Tensor) -> Tensor:
    """Mean variance of a stage's kernel per axis, in pixels of its own grid, `[B]`."""
    axis = torch.arange(SIZE, dtype=kernels.dtype) - SIZE // 2
    squares = (axis[:, None] ** 2 + axis[None, :] ** 2) / 2
    spread = (kernels * squares).flatten(1).sum(1)
    spread = torch.where(stage.sinc, _sinc_variance(stage.omega), spread)
    return torch.where(stage.blur, spread, 0)


def _blur(rows: DegradationParameters, first: Tensor, second: Tensor) -> Tensor:
    variance = _variance(rows.first, first)
    variance += _variance(rows.second, second) / rows.first.resize_scale**2
    variance += torch.where(rows.final.sinc, _sinc_variance(rows.final.omega) * rows.scale**2, 0)
    return variance.sqrt()


def _noise_variance(stage: StageParameters) -> Tensor:
    """Variance of the noise on the luma of a mid-grey image, `[B]`."""
    poisson = stage.noise_type == NOISE_TYPES.index("poisson")
    unit = torch.where(poisson, _MID_GREY / _GRAINS, 1 / 255**2)
    luma = torch.where(stage.gray_noise, 1.0, sum(w * w for w in _LUMA))
    return stage.noise_strength**2 * unit * luma


def _noise(rows: DegradationParameters, kernels: Tensor) -> Tensor:
    first, second = rows.first, rows.second
    energy = kernels.square().flatten(1).sum(1)
    energy = torch.where(second.blur, energy, 1)
    ratio = second.resize_scale / (rows.scale * first.resize_scale)
    area = ratio.clamp(max=1) ** 2
    left = torch.tensor([math.nan, _BILINEAR, _BICUBIC], dtype=torch.float64)[second.resize_mode]
    left = torch.where(second.resize_mode == MODES.index("area"), area, left)
    return (energy * left * _noise_variance(first) + _noise_variance(second)).sqrt()


def effective_strength(parameters: DegradationParameters) -> tuple[Tensor, Tensor]:
    """`effective_blur` and `effective_noise` together, for little more than the price of one."""
    rows = parameters.to("cpu")
    first, second = (stage_kernels(s, dtype=torch.float64) for s in (rows.first, rows.second))
    return _blur(rows, first, second), _noise(rows, second)


def effective_blur(parameters: DegradationParameters) -> Tensor:
    r"""Standard deviation of all blur together, in HR pixels, `[B]` float64.

    $\sqrt{\sigma_1^2+\sigma_2^2/s_1^2+\text{scale}^2\,\sigma_f^2}$, with $\sigma_i^2$ the mean
    variance of a kernel per axis on its own grid and $s_1$ the first resize factor. A sinc counts
    as the Gaussian whose frequency response is one half at the cutoff, $\sigma^2=2\ln 2/\omega^2$,
    as the second moment of a sinc means nothing.
    """
    return effective_strength(parameters)[0]


def effective_noise(parameters: DegradationParameters) -> Tensor:
    r"""Standard deviation of all noise on the luma of a mid-grey LR image in [0, 1], `[B]`.

    $\sqrt{e_2 r\,n_1^2+n_2^2}$: the variance $n_i^2$ of a stage's noise, of which the second blur
    leaves its energy $e_2=\sum k^2$ and the second resize $r$: the ratio of areas where "area"
    shrinks, 4/9 and 0.48 for bilinear and bicubic interpolation, 1 for "area" otherwise. What comes
    after the second noise is left out.
    """
    return effective_strength(parameters)[1]
