"""Weights made more or less equal."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlweight.options import Positive
from mtlweight.strategy import Strategy
from mtlweight.wrappers.base import Wrapper
from mtlweight.wrappers.preference import as_large


class Tempered(Wrapper):
    r"""Makes the weights of a strategy more equal, or less, and keeps their sum.

    $$\tilde w_i \propto w_i^{1/\tau}$$

    As in `Tempered(0.5, Achievement(tasks, references))`. With $\tau = 1$ nothing is changed; above
    it the weights are more equal, below it less. Weights of zero stay zero. A negative weight keeps
    its sign, and the sum kept is then that of the sizes (ours).

    Use it when a strategy ranks the tasks well, but too timidly, as a softmax of small numbers
    does, or too harshly. Not when the strategy has a temperature of its own, as `DWA` has; and to
    keep tasks from starving, `Bounded` does that alone.

    Args:
        temperature: $\tau$, above zero.
        inner: The strategy to temper.

    Raises:
        OptionError: `temperature` is not above zero.

    Source: ours.
    """

    def __init__(self, temperature: Positive, inner: Strategy) -> None:
        super().__init__(inner)
        self.temperature = temperature
        self.weights = self.change(self.weights)

    def change(self, weights: Tensor) -> Tensor:
        """Returns the weights `[n]`, made more or less equal."""
        sizes = weights.abs()
        # Relative to the largest, so that no power overflows.
        shares = sizes / sizes.max().clamp_min(torch.finfo(weights.dtype).tiny)
        return as_large(weights.sign() * shares ** (1 / self.temperature), weights)
