"""Shares of the data, learned from the losses of the steps."""

from __future__ import annotations

import math
from typing import Annotated, Unpack

import torch
from pydantic import Field
from torch import Tensor

from mtlweight.inputs import Metrics, read_metrics
from mtlweight.loss_strategy import LossWeighting, among
from mtlweight.options import Options, Positive, Tasks
from mtlweight.per_task import per_task
from mtlweight.running import RunningMean, updated


class DoReMi(LossWeighting):
    r"""Domain reweighting by minimax: favours the tasks that lag furthest behind a reference.

    $$\log \alpha_i \leftarrow \log \alpha_i + \eta \max(L_i - L^{ref}_i, 0), \qquad
    \alpha \leftarrow (1-c) \operatorname{softmax}(\log \alpha) + \frac{c}{T}, \qquad
    \mathcal{L} = \sum_i \alpha_i L_i$$

    from uniform $\alpha$; a step is weighted by the $\alpha$ that it has just changed. The method's
    result is the mean of $\alpha$ over the steps: that is what `weights` are after `end_epoch`, for
    the epoch. The authors take it over a whole run of a small network, and then draw the data of
    the large one by it: call `end_epoch` once, at the end, to have the same; call it more often to
    go on mixing. The authors clip the excess of each token; ours clips that of the mean loss of the
    task (and to at most $20/\eta$, so that one spike does not decide). A task that is absent from a
    step keeps its $\alpha$ up to the common factor that makes them sum to one, where the authors'
    code repeats its last excess (ours).

    Use it when each task has a loss that a reference network reached, and the tasks still above
    theirs should get the data. Not when losses have different units: an excess counts as it is.

    With the losses of the reference network on the very batch, as the authors have, subtract them:
    `references=[0.0] * T`, and `strategy({task: losses[task] - reference_losses[task], ...})` with
    the latter detached. The gradient of the network is the same.

    Args:
        tasks: The names of the tasks, or their number.
        references: $L^{ref}$, the loss of the reference network for each task; any sign.
        learning_rate: $\eta$, per unit of the losses.
        smoothing: $c$, the part that is shared evenly.
        **options: See `Options`.

    Attributes:
        references: $L^{ref}$, `[T]`.
        log_shares: $\log \alpha$, up to a constant, `[T]`.

    Raises:
        OptionError: A reference is missing or not finite.

    Source: Xie et al., *DoReMi: optimizing data mixtures speeds up language model pretraining*,
    NeurIPS 2023, arXiv 2305.10429, algorithm 1; constants of the authors' code.
    """

    references: Tensor
    log_shares: Tensor

    def __init__(
        self,
        tasks: Tasks,
        references: Metrics,
        *,
        learning_rate: Positive = 1.0,
        smoothing: Annotated[float, Field(gt=0, lt=1)] = 1e-4,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(tasks, **options)
        self.learning_rate = learning_rate
        self.smoothing = smoothing
        numbers = per_task(self.tasks, references, "references")
        self.epoch_shares = RunningMean(self.num_tasks)
        self.register_buffer("references", torch.tensor(list(numbers.values())))
        self.register_buffer("log_shares", self.uniform().log())

    def set_references(self, references: Metrics) -> None:
        """Replaces reference losses, as when the reference network has been trained further.

        Args:
            references: The new ones, a mapping from task name, which may leave tasks out, or a
                sequence or tensor `[T]`. Must be equal on all ranks.

        Raises:
            ValueError: A task is unknown, or a reference is not finite; the old ones stay.
            TypeError: A reference is not a number.
        """
        new = read_metrics(self.tasks, references, "`references`")
        device = self.references.device
        which = torch.tensor([self.tasks.index(task) for task in new], device=device)
        values = torch.tensor(list(new.values()), device=device)
        self.references = updated(self.references, which, values)

    def weights_of(self, losses: Tensor) -> Tensor:
        excess = losses - self.references[self.present]
        raised = self.log_shares[self.present] + (self.learning_rate * excess).clamp(0, 20)
        total = updated(self.log_shares, self.present, raised).logsumexp(0)
        floor = total + math.log(self.smoothing / self.num_tasks)
        smoothed = torch.logaddexp(raised + math.log1p(-self.smoothing), floor)
        if isinstance(self.present, slice):
            smoothed = smoothed - total  # without it, steps that lack tasks leave the others alone
        self.log_shares = updated(self.log_shares, self.present, smoothed)
        shares = self.log_shares.softmax(0)
        self.epoch_shares.add(self.present, shares[self.present])
        return among(shares, self.present)

    def close_epoch(self, metrics: Metrics | None) -> None:
        """Takes the mean of the shares over the steps."""
        # Not that of the weights: a task that is alone in its batches has weight one in each.
        means = self.epoch_shares.mean(default=self.log_shares.softmax(0))
        self.weights = means / means.sum()
        self.epoch_shares.reset()
        self.log_shares = self.log_shares.log_softmax(0)


class OnlineMixing(LossWeighting):
    r"""Online data mixing: a bandit that favours the tasks with the largest losses.

    $$R_i \leftarrow R_i + \frac{L_i}{s\, p_i}, \qquad
    p = (1 - T \epsilon_t) \operatorname{softmax}(\epsilon_{t-1} R) + \epsilon_t, \qquad
    \epsilon_t = \min\Big(\frac1T, \sqrt{\frac{\ln T}{T\, t}}\Big)$$

    in step t, from R = 0 and uniform p: EXP3 with the loss as the reward. A step is weighted by the
    p that was there before it, and `weights` after `end_epoch` are the latest p, to draw the next
    data by. Tasks that are absent from a step earn nothing. Rewards count within [-10, 10] (ours).

    The authors draw one task for each batch, and the division by p makes up for how rarely a task
    is drawn. Where every batch holds every task, as with exact quotas, it acts as a brake instead:
    the rewards of a task grow faster the smaller its share, and p settles close to proportional to
    the losses, with a floor of $\epsilon_t$ that falls as $1/\sqrt t$.

    Use it when nothing but training losses is at hand, they have one unit, and a large loss means
    that there is much to learn. Not when a loss is large because its task is noisy or has another
    unit: that task would get the data.

    Args:
        tasks: The names of the tasks, or their number.
        scale: $s$, in the unit of the losses: what divides them into rewards of at most about one.
        **options: See `Options`.

    Attributes:
        rewards: R, up to a constant, `[T]`.

    Source: Albalak et al., *Efficient online data mixing for language model pre-training*, arXiv
    2312.02406, with the sums, the schedule and the scale of the authors' code.
    """

    rewards: Tensor

    def __init__(self, tasks: Tasks, *, scale: Positive = 10.0, **options: Unpack[Options]) -> None:
        super().__init__(tasks, **options)
        self.scale = scale
        self.register_buffer("rewards", torch.zeros(self.num_tasks))

    def exploration(self, steps: int) -> float:
        r"""Returns $\epsilon$ after a number of steps: the least share of a task."""
        tasks = self.num_tasks
        if steps == 0:
            return 1 / tasks
        return min(1 / tasks, math.sqrt(math.log(tasks) / (tasks * steps)))

    def probabilities(self) -> Tensor:
        """Returns p after the steps so far, `[T]`."""
        if self.step == 0:
            return torch.full_like(self.rewards, 1 / self.num_tasks)
        now, before = self.exploration(self.step), self.exploration(self.step - 1)
        return (1 - self.num_tasks * now) * (before * self.rewards).softmax(0) + now

    def weights_of(self, losses: Tensor) -> Tensor:
        p = self.probabilities()
        reward = (losses / self.scale).clamp(-10, 10)
        rewards = self.rewards[self.present] + reward / p[self.present]
        if isinstance(self.present, slice):
            rewards = rewards - rewards.min()  # so that float32 keeps the digits that matter
        self.rewards = updated(self.rewards, self.present, rewards)
        return among(p, self.present)

    def close_epoch(self, metrics: Metrics | None) -> None:
        """Takes the latest probabilities."""
        self.rewards = self.rewards - self.rewards.min()
        self.weights = self.probabilities()
