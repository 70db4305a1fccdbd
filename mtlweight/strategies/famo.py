"""Fast adaptive multi-task optimisation: every loss falls at the same relative rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from mtlweight.distributed import average_over_ranks
from mtlweight.inputs import Losses, Metrics, read_counts, read_losses
from mtlweight.loss_strategy import LossStrategy
from mtlweight.options import NonNegative, Options, Positive, Tasks
from mtlweight.per_task import per_task
from mtlweight.running import Adam, sent, updated


class FAMO(LossStrategy):
    r"""Fast adaptive multi-task optimisation: lets every loss fall at the same relative rate.

    $$D_i = L_i - b_i, \qquad z = \operatorname{softmax}(\xi), \qquad
    \mathcal{L} = c \sum_i z_i \log D_i, \qquad c = \Big(\sum_i z_i / D_i\Big)^{-1}$$

    with c held constant, so that the weights $w_i = c\, z_i / D_i$ sum to one. The logits $\xi$ are
    zero at the start. From the losses $D'$ after a step they learn by

    $$\delta_i = \log D_i - \log D'_i, \qquad
    \xi \leftarrow \mathrm{Adam}\big(\xi,\; z_i (\delta_i - \textstyle\sum_j z_j \delta_j)
    + \gamma\, \xi_i\big)$$

    which takes weight from the tasks whose loss fell most. $D'$ are the losses of the next call, on
    the next batch: the paper's cheap form, without a forward pass more. For the paper's other form,
    give the losses of the same batch after `optimizer.step()` to `after_step`:

        optimizer.step()
        with torch.no_grad():
            strategy.after_step(compute_losses(model, batch))

    Ours: the paper's $\epsilon$ is relative. A loss within $10^{-8}$ of the largest from its bound,
    or below it, has no say in the step (it would take all the weight, and give no gradient), and
    counts as that in $\delta$; where all losses are like that, $w = z$. Tasks that only one of the
    two sets of losses holds learn nothing from them.

    Use it when losses of different scales should all improve alike and T backward passes cost too
    much. Not when a loss may be negative and has no known bound, or when batches are so small that
    the losses differ more from batch to batch than from step to step: then give `after_step`.

    Args:
        tasks: The names of the tasks, or their number.
        learning_rate: That of $\xi$.
        weight_decay: $\gamma$, which pulls $z$ to equal shares.
        lower_bounds: $b$, what each loss can't fall below: a mapping from task name, or `[T]`.
            Zeros by default.
        **options: See `Options`.

    Attributes:
        logits: $\xi$, `[T]`.
        latest: The loss of each task when it was last seen, `[T]`.
        latest_step: The call in which that was, `[T]`, int64; -1 before the first.

    Raises:
        OptionError: A bound is missing or not finite.
        ValueError: A loss is negative, and no bound is.

    Source: Liu, Feng, Stone & Liu, *FAMO: fast adaptive multitask optimization*, NeurIPS 2023,
    algorithm 1 and section 3, with the learning rate of the authors' scripts.
    """

    floor = 1e-8
    carried: ClassVar[tuple[str, ...]] = (*LossStrategy.carried, "followed")
    logits: Tensor
    latest: Tensor
    latest_step: Tensor
    bounds: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        learning_rate: Positive = 0.025,
        weight_decay: NonNegative = 1e-3,
        lower_bounds: Metrics | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(tasks, **options)
        given = [0.0] * self.num_tasks if lower_bounds is None else lower_bounds
        bounds = list(per_task(self.tasks, given, "lower_bounds").values())
        self.all_positive = min(bounds) >= 0
        self.weight_decay = weight_decay
        self.followed = 0  # the number of calls when `after_step` was last told of one
        self.register_buffer("bounds", torch.tensor(bounds), persistent=False)
        self.register_buffer("logits", torch.zeros(self.num_tasks))
        self.register_buffer("latest", torch.zeros(self.num_tasks))
        self.register_buffer("latest_step", torch.full((self.num_tasks,), -1))
        self.adam = Adam(self.num_tasks, learning_rate)

    @property
    def nonnegative_losses(self) -> bool:
        """A loss below zero has no logarithm, unless its bound is negative too."""
        return self.all_positive

    def scalarize(self, losses: Tensor) -> Tensor:
        seen = losses.detach()
        if self.followed != self.step:  # nobody told how the latest step went: this batch does
            self._learn(seen)
        self.latest = updated(self.latest, self.present, seen)
        calls = torch.full_like(seen, self.step, dtype=torch.int64)
        self.latest_step = updated(self.latest_step, self.present, calls)
        z = self.logits[self.present].softmax(0).to(losses)
        excess = losses - self.bounds[self.present].to(losses)
        counts = excess > self._lowest(excess)
        d = torch.where(counts, excess, 1.0)
        total = torch.where(counts, z / d.detach(), 0.0).sum()
        c = torch.where(total > 0, 1 / total, 0.0)
        return c * (z * d.log()).sum() + torch.where(counts.any(), 0.0, (z * losses).sum())

    @torch.no_grad()
    def after_step(self, losses: Losses, *, counts: Mapping[str, int] | None = None) -> None:
        """Learns from the losses of the same batch after `optimizer.step()`; optional.

        With several ranks all must call it. In `eval()` it learns nothing.

        Args:
            losses: As in the call before the step; they may be detached.
            counts: As in the call before the step.

        Raises:
            RuntimeError: There was no call in training since the latest `after_step`.
            ValueError: A loss is not finite, negative, or of an unknown task.
            TypeError: A loss is not a floating point tensor.
        """
        step = read_losses(self.tasks, losses, training=False)
        numbers = read_counts(self.tasks, step, counts)
        if not self.training:
            return
        if self.followed == self.step:
            raise RuntimeError(
                "`after_step` tells how the step after a call went, and there was no call since "
                "the latest one: call strategy(losses) first, then backward and optimizer.step()."
            )
        self._follow(step.values.device)
        self._raise_late(self.late_errors.raise_ready)
        with self.undone_if_refused():
            step = average_over_ranks(self.num_tasks, step, numbers)
            good = self._check_values(step)
            before = self.buffers_now()
            if len(step.index) < self.num_tasks:
                self.present = sent(torch.tensor(step.index), step.seen)
            try:
                self._learn(step.seen)
            finally:
                self.present = slice(None)
            self.followed = self.step
            if good is not None:
                self.keep_if(good, before)

    def _learn(self, after: Tensor) -> None:
        """Moves the logits by the change from the latest call to the losses `[n]` given."""
        compared = self.latest_step[self.present] == self.step - 1
        bounds = self.bounds[self.present]
        old = self.latest[self.present] - bounds
        new = after.to(old) - bounds
        lowest = self._lowest(torch.where(compared, old, 0.0))
        ratio = old.maximum(lowest) / new.maximum(lowest)
        # That of a task not compared may be infinite.
        delta = torch.where(compared, ratio.clamp_min(torch.finfo(ratio.dtype).tiny).log(), 0.0)
        logits = self.logits[self.present]
        z = logits.masked_fill(~compared, -torch.inf).softmax(0)
        # By differences, so that equal changes give zero to the bit: Adam has no sense of small.
        slope = z * (z * (delta[:, None] - delta)).sum(1)
        before = self.buffers_now()
        self.logits = self.adam.step(self.logits, self.present, slope + self.weight_decay * logits)
        nowhere = torch.zeros_like(self.latest_step, dtype=torch.bool)
        self.keep_if(updated(nowhere, self.present, compared), before)

    def _lowest(self, excess: Tensor) -> Tensor:
        """Returns the least excess over its bound that tells anything."""
        largest = excess.detach().max()
        return (self.floor * largest).clamp_min(torch.finfo(excess.dtype).tiny)
