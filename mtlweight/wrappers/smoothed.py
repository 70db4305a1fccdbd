"""Weights averaged over time."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlweight.inputs import Metrics
from mtlweight.options import Share
from mtlweight.running import updated
from mtlweight.strategy import Strategy
from mtlweight.wrappers.base import Wrapper


class Smoothed(Wrapper):
    r"""Smooths the weights of a strategy over the steps, by an exponential moving average.

    $$\bar w \leftarrow a\, \bar w + (1 - a)\, w$$

    with $w$ the inner weights, and the first of them taken as they are. As in `Smoothed(0.9,
    MGDA(tasks))`; the paper takes $a = 0.9$. With $a = 0$ nothing is changed, with $a = 1$ the
    first weights stay for ever. The average of a task stands still in steps without it, so in such
    a step the weights need not sum to what the inner ones do (ours). Weights that a strategy
    announces at the end of an epoch, as `DWA` and those that read metrics do, are smoothed there,
    once, and all steps of the next epoch go by the result: $a$ then counts epochs (ours).

    Use it when the weights jump from step to step, as those solved from the gradients of small
    batches do: smoothing them is what makes such methods converge. Not when the weights are random
    on purpose, as in `RLW`, which become equal.

    Args:
        share: $a$, the share of the past, from 0 to 1.
        inner: The strategy to smooth.

    Attributes:
        averages: $\bar w$, `[T]`.
        known: Ones for the tasks that have an average, `[T]`.
        announced: The inner weights that were announced last; zeros until then, `[T]`.

    Raises:
        OptionError: `share` is out of range.

    Source: Zhou et al., *On the convergence of stochastic multi-objective gradient manipulation and
    beyond* (CR-MOGM), NeurIPS 2022, with a constant $a$.
    """

    averages: Tensor
    known: Tensor
    announced: Tensor

    def __init__(self, share: Share, inner: Strategy) -> None:
        super().__init__(inner)
        self.share = share
        for name in ("averages", "known", "announced"):
            self.register_buffer(name, torch.zeros(self.num_tasks))

    def change(self, weights: Tensor) -> Tensor:
        """Returns the averages `[n]` after a step, or what was announced, as the step has it."""
        past = self.averages[self.present].to(weights)
        known = self.known[self.present] > 0
        averages = torch.where(known, torch.lerp(weights, past, self.share), weights)
        # The inner weights of a step that goes by announced ones may differ from them: for some
        # tasks only, or for losses taken in a geometric mean. They are followed in proportion.
        announced = self.announced[self.present].to(weights)
        followed = torch.where(announced != 0, weights * (past / announced), past)
        constant = self.announced.any()
        kept = torch.where(constant, past, averages)
        self.averages = updated(self.averages, self.present, kept)
        self.known = updated(self.known, self.present, torch.ones_like(weights))
        return torch.where(constant, followed, averages)

    def close_epoch(self, metrics: Metrics | None) -> None:
        """Closes the inner epoch, and smooths the weights that it announces for the next."""
        constant = self.close_inner(metrics) | self.announced.any()
        new = self.inner.weights
        averages = torch.where(self.known > 0, torch.lerp(new, self.averages, self.share), new)
        self.averages = torch.where(constant, averages, self.averages)
        self.known = torch.where(constant, torch.ones_like(self.known), self.known)
        self.announced = torch.where(constant, new, self.announced)
        self.weights = torch.where(constant, averages, self.weights)
