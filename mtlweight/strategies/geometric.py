"""The geometric mean of the losses."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlweight.strategy import LossStrategy


class GLS(LossStrategy):
    r"""Geometric loss strategy: the geometric mean of the losses, whatever their scales.

    $$\mathcal{L} = \Big(\prod_i L_i\Big)^{1/T}, \qquad w_i = \frac{\mathcal{L}}{T L_i}$$

    Computed from logarithms, so that no product underflows. A loss below $10^{-8}$ of the largest
    counts as that, and its task has no say in the step (ours): at zero the mean has no gradient.

    Raises:
        ValueError: A loss is negative.

    Source: Chennupati, Sistu, Yogamani & Rawashdeh, *MultiNet++*, CVPR Workshops 2019.
    """

    @property
    def nonnegative_losses(self) -> bool:
        """A negative loss has no geometric mean with others."""
        return True

    def scalarize(self, losses: Tensor) -> Tensor:
        return safe_log(losses).mean().exp()


def safe_log(losses: Tensor) -> Tensor:
    """Returns the logarithm of losses `[n]`, flat below 1e-8 of the largest of them."""
    floor = (1e-8 * losses.detach().max()).clamp_min(torch.finfo(losses.dtype).tiny)
    return losses.maximum(floor).log()
