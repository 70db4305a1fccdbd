"""The geometric mean of the losses, and its logarithm."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlweight.loss_strategy import LossStrategy


class GLS(LossStrategy):
    r"""Geometric loss strategy: the geometric mean of the losses, whatever their scales.

    $$\mathcal{L} = \Big(\prod_i L_i\Big)^{1/T}, \qquad w_i = \frac{\mathcal{L}}{T L_i}$$

    Computed from logarithms, so that no product underflows. A loss below $10^{-8}$ of the largest
    counts as that, and its task has no say in the step (ours): at zero the mean has no gradient.

    Use it when the losses differ in unit and size, and nothing is to be tuned: every task is pushed
    by the relative fall of its loss. Not when a loss can reach zero long before the others, since
    all the weight then goes to it.

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


class ScaleInvariant(LossStrategy):
    r"""Scale-invariant sum: the sum of the logarithms of the losses.

    $$\mathcal{L} = \sum_i \log L_i, \qquad w_i = 1 / L_i$$

    A loss times a constant has the same gradient. The direction is that of `GLS`, which is as long
    as the losses are large; this one has the same length for losses of any size. A loss below
    $10^{-8}$ of the largest has no say in the step (ours).

    Use it when the losses differ in unit and size, as the plain baseline that any other balancing
    has to beat. Not when losses shrink by orders of magnitude and the learning rate stays: the
    steps do not shrink with them, and the loss that is nearest to zero leads.

    Raises:
        ValueError: A loss is negative.

    Source: Navon et al., *Multi-task learning as a bargaining game*, ICML 2022, the baseline SI.
    """

    @property
    def nonnegative_losses(self) -> bool:
        """A negative loss has no logarithm."""
        return True

    def scalarize(self, losses: Tensor) -> Tensor:
        return safe_log(losses).sum()


def safe_log(losses: Tensor) -> Tensor:
    """Returns the logarithm of losses `[n]`, flat below 1e-8 of the largest of them."""
    return losses.maximum(_floor(losses)).log()


def safe_inverse(losses: Tensor) -> Tensor:
    """Returns one over losses `[n]`, the slope of `safe_log`: zero where that is flat."""
    floor = _floor(losses)
    return torch.where(losses > floor, 1 / losses.maximum(floor), 0.0)


def _floor(losses: Tensor) -> Tensor:
    # One over the least of them must be a number that sums in single precision can hold.
    return (1e-8 * losses.detach().max()).clamp_min(1e-30)
