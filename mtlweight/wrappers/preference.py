"""What the user cares for."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlweight.inputs import Metrics
from mtlweight.per_task import shares_of
from mtlweight.strategy import Strategy
from mtlweight.wrappers.base import Wrapper


class Preference(Wrapper):
    r"""Multiplies the weights of a strategy by what the user prefers, and keeps their sum.

    $$\tilde w_i = p_i w_i \, \frac{\sum_j |w_j|}{\sum_j p_j |w_j|}$$

    As in `Preference({"seg": 2, "depth": 1}, DBMTL(["seg", "depth"]))`. Only the ratios of the
    preferences matter. Where weights are negative, the sum kept is that of their sizes (ours).

    Use it when tasks matter unequally to you, whatever the strategy balances. Not when the strategy
    takes preferences itself, where they belong into what it solves; nor to drop a task for good,
    which is done by leaving it out.

    Args:
        preferences: $p$, non-negative and not all zero: a mapping from task name, or `[T]`.
        inner: The strategy to multiply.

    Attributes:
        preferences: $p$, `[T]`; an option, which is not saved.

    Raises:
        OptionError: A preference is missing, negative or not finite, or all are zero.

    Source: ours.
    """

    preferences: Tensor

    def __init__(self, preferences: Metrics, inner: Strategy) -> None:
        super().__init__(inner)
        shares = shares_of(self.tasks, preferences, "preferences")
        self.register_buffer("preferences", torch.tensor(shares), persistent=False)
        self.weights = self.change(self.weights)

    def change(self, weights: Tensor) -> Tensor:
        """Returns the weights `[n]`, multiplied."""
        return as_large(self.preferences[self.present].to(weights) * weights, weights)


def as_large(weights: Tensor, like: Tensor) -> Tensor:
    """Returns weights `[n]` scaled to the sum of the sizes of others; zeros stay zeros."""
    size = weights.abs().sum()
    return weights * torch.where(size > 0, like.abs().sum() / size, 1.0)
