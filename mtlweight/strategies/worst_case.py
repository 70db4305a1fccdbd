"""Attention to the worst task: hard, smooth, exponential, and by an adversary that learns."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from mtlweight.inputs import Metrics
from mtlweight.loss_strategy import LossStrategy, LossWeighting
from mtlweight.options import Natural, Options, Positive, Tasks
from mtlweight.per_task import per_task
from mtlweight.running import RunningMean, updated
from mtlweight.strategies.geometric import safe_log
from mtlweight.strategies.preference_scalarizations import ideals_of, positive_per_task


class GroupDRO(LossWeighting):
    r"""Group distributionally robust optimisation: an adversary shifts weight to large losses.

    $$q_i \leftarrow \frac{q_i \exp(\eta\, x_i)}{\sum_j q_j \exp(\eta\, x_j)}, \qquad
    \mathcal{L} = \sum_i q_i L_i, \qquad x_i = \frac{L_i}{|L_i^{(0)}|}$$

    from equal $q$, with $L_i^{(0)}$ the first loss of task i that is not zero. Given references,
    $x_i = \max(L_i - r_i, 0) / |L_i^{(0)}|$: the excess over what the task could reach. Ours: the
    division by the first loss (the paper's groups share one loss, tasks don't); $x$ within
    [-10, 10], so that one spike doesn't decide for good; $q$ is kept as a logarithm, which zero
    doesn't swallow; and tasks present share what they had together, so that absent ones stand
    still.

    Use it when the worst task counts, and what counts as worst should be the state of many steps,
    not of one. Not when a task can't improve: without references it takes all the weight in time
    (its share grows as $e^{\eta x k}$ with the step k).

    Args:
        tasks: The names of the tasks, or their number.
        step_size: $\eta$.
        references: $r$, the losses of networks trained on one task alone: a mapping from task name,
            or `[T]`. None by default.
        **options: See `Options`.

    Attributes:
        log_shares: $\log q$, `[T]`.
        first_losses: $|L^{(0)}|$, `[T]`; zero where there was none yet.

    Raises:
        OptionError: A reference is missing or not finite.

    Source: Sagawa, Koh, Hashimoto & Liang, *Distributionally robust neural networks for group
    shifts*, ICLR 2020, algorithm 1; excess losses as in He et al., *Robust multi-task learning with
    excess risks*, ICML 2024.
    """

    log_shares: Tensor
    first_losses: Tensor
    references: Tensor | None

    def __init__(
        self,
        tasks: Tasks,
        *,
        step_size: Positive = 0.01,
        references: Metrics | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(tasks, **options)
        self.step_size = step_size
        constants = None
        if references is not None:
            given = per_task(self.tasks, references, "references")
            constants = torch.tensor(list(given.values()))
        self.register_buffer("references", constants, persistent=False)
        self.register_buffer("log_shares", self.uniform().log())
        self.register_buffer("first_losses", torch.zeros(self.num_tasks))

    def weights_of(self, losses: Tensor) -> Tensor:
        first = first_of(self.first_losses[self.present], losses)
        self.first_losses = updated(self.first_losses, self.present, first)
        if self.references is not None:
            losses = (losses - self.references[self.present].to(losses)).clamp_min(0)
        x = torch.where(first > 0, losses / first, 0.0).clamp(-10, 10)
        shares = shifted(self.log_shares[self.present], self.step_size * x)
        self.log_shares = updated(self.log_shares, self.present, shares)
        return shares.softmax(0)


class Tchebycheff(LossStrategy):
    r"""Tchebycheff scalarisation: trains the worst task alone.

    $$\mathcal{L} = \max_i p_i (L_i - z^*_i)$$

    The weight of the worst task is $p_i$, that of the others zero; tasks tied for the worst share
    it equally (ours), so that their order doesn't matter.

    Use it when no task may stay behind and the losses are comparable, or made so by preferences.
    Not when training is noisy: each step goes to one task, and the others are forgotten until they
    are worst. `STCH` is the smooth form.

    Args:
        tasks: The names of the tasks, or their number.
        preferences: $p$, positive; ones by default.
        ideals: $z^*$, the least that each loss can be; zeros by default.
        **options: See `Options`.

    Raises:
        OptionError: A preference or ideal is missing, or a preference is not positive.

    Source: Bowman, *On the relationship of the Tchebycheff norm and the efficient frontier of
    multiple-criteria objectives*, 1976; as in MOEA/D, Zhang & Li, 2007, section II-B.
    """

    preferences: Tensor
    ideals: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        preferences: Metrics | None = None,
        ideals: Metrics | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(tasks, **options)
        given = positive_per_task(self.tasks, preferences)
        self.register_buffer("preferences", given, persistent=False)
        self.register_buffer("ideals", ideals_of(self.tasks, ideals), persistent=False)

    def scalarize(self, losses: Tensor) -> Tensor:
        p = self.preferences[self.present].to(losses)
        ideals = self.ideals[self.present].to(losses)
        return (p * (losses - ideals)).amax(0)  # its derivative is shared among ties


class STCH(LossStrategy):
    r"""Smooth Tchebycheff scalarisation: a soft maximum of the losses' progress.

    $$\mathcal{L} = T \mu \log \sum_i e^{f_i / \mu}, \qquad
    f_i = \log \frac{L_i}{\text{nadir}_i}, \qquad
    w_i = \frac{T}{L_i} \operatorname{softmax}(f / \mu)_i$$

    in the form of the authors' code for multi-task learning, where T is the number of tasks
    present. The nadir is the mean loss in the epoch `warmup`; up to the end of that epoch
    $\mathcal{L} = \sum_i \log L_i$ (by default for five epochs, 0 to 4). Ours: a task that was
    absent from that epoch gets its nadir from the first one it is in, and has the weight of a task
    at its nadir until then; a loss below $10^{-8}$ of its nadir (of the largest loss in the
    warm-up) counts as that, and its task has no say in the step.

    Use it when losses differ in scale and the task that has improved least should lead. Not when
    there are only a few epochs, or none is closed by `end_epoch`: then it stays in the warm-up.

    Args:
        tasks: The names of the tasks, or their number.
        mu: $\mu$; towards zero only the worst task counts, and 1 is $T \log \sum_i L_i /
            \text{nadir}_i$.
        warmup: The epoch, from 0, whose mean losses are the nadir.
        **options: See `Options`.

    Attributes:
        nadirs: `[T]`; zero where there is none yet.

    Raises:
        ValueError: A loss is negative.

    Source: Lin et al., *Smooth Tchebycheff scalarization for multi-objective optimization*, ICML
    2024, arXiv 2402.19078, eq. 6, with the authors' code.
    """

    nadirs: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        mu: Positive = 1.0,
        warmup: Natural = 4,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(tasks, **options)
        self.mu = mu
        self.warmup = warmup
        self.epoch_losses = RunningMean(self.num_tasks)
        self.register_buffer("nadirs", torch.zeros(self.num_tasks))

    @property
    def nonnegative_losses(self) -> bool:
        """A negative loss has no logarithm."""
        return True

    def scalarize(self, losses: Tensor) -> Tensor:
        self.epoch_losses.add(self.present, losses.detach())
        if self.epoch <= self.warmup:
            return safe_log(losses).sum()
        nadirs = first_of(self.nadirs[self.present], losses.detach())
        nadirs = torch.where(nadirs > 0, nadirs, 1.0)
        floor = (1e-8 * nadirs).clamp_min(torch.finfo(losses.dtype).tiny)
        f = losses.maximum(floor).log() - nadirs.log()
        return len(losses) * self.mu * (f / self.mu).logsumexp(0)

    def close_epoch(self, metrics: Metrics | None) -> None:
        """Takes the mean losses of the warm-up's last epoch as the nadir."""
        if self.epoch >= self.warmup:
            self.nadirs = first_of(self.nadirs, self.epoch_losses.mean(default=self.nadirs))
        self.epoch_losses.reset()


class BMTL(LossStrategy):
    r"""Balanced multi-task learning: the exponentials of the losses, so that large ones count more.

    $$\mathcal{L} = \sum_i e^{L_i / \tau}, \qquad w_i = e^{L_i / \tau} / \tau$$

    Ours: beyond $L_i = 10\,\tau$ the exponential goes on as its tangent, so that no weight exceeds
    $e^{10} / \tau$ and none overflows. The length of the weights is the paper's: about $1 / \tau$
    each where losses are small beside $\tau$ (`rescale="one"` takes that out).

    Use it when losses have one scale and the larger ones should get a little more attention. Not
    when scales differ, or are unknown: $\tau$ is in the unit of the losses. `GroupDRO` and `STCH`
    measure them first.

    Args:
        tasks: The names of the tasks, or their number.
        temperature: $\tau$. The paper tunes it, to about 50; that is known to us at second hand.
        **options: See `Options`.

    Source: Liang & Zhang, *A simple general approach to balance task difficulty in multi-task
    learning*, arXiv 2002.04792.
    """

    def __init__(
        self, tasks: Tasks, *, temperature: Positive = 50.0, **options: Unpack[Options]
    ) -> None:
        super().__init__(tasks, **options)
        self.temperature = temperature

    def scalarize(self, losses: Tensor) -> Tensor:
        x = losses / self.temperature
        curved = x.clamp_max(10)
        return (curved.exp() * (1 + x - curved)).sum()


def first_of(known: Tensor, new: Tensor) -> Tensor:
    """Returns what is known, and the sizes of `new` where that is nothing (zero), `[n]`."""
    known = known.to(new)
    return torch.where(known > 0, known, new.abs())


def shifted(log_shares: Tensor, by: Tensor) -> Tensor:
    """Returns the logarithms of shares `[n]` times exp(`by`), with the sum that they had."""
    moved = log_shares + by.to(log_shares)
    return moved + (log_shares.logsumexp(0) - moved.logsumexp(0))
