"""Weights shared by groups of tasks, and weights that keep tasks together."""

from __future__ import annotations

from typing import Literal, Unpack

import torch
from torch import Tensor

from mtlweight.loss_strategy import LossStrategy, LossWeighting
from mtlweight.options import Count, NonNegative, Options, Positive, Tasks
from mtlweight.running import Adam, updated
from mtlweight.strategies.worst_case import first_of, shifted


class GO4Align(LossWeighting):
    r"""Group optimisation for multi-task alignment: one weight per group of similar tasks.

    $$p_i \leftarrow \frac{p_i e^{-\beta L_i}}{\sum_j p_j e^{-\beta L_j}}, \qquad
    r_i = \frac{\sum_j L_j}{L_i}\, p_i, \qquad
    w_i = \text{mean of } r \text{ in the group of } i$$

    from equal $p$. The groups are the best split of the T numbers $r$ into K, by squared distance
    to their means: k-means, solved exactly (numbers on a line need no random start). With K = T the
    weights are $r$; with one group they are equal. As in the authors' code, the exponent is
    negative. Ours: K, which the paper tunes; $\beta L_i$ is at most 1, so that a spike doesn't
    decide for good; $p$ is kept as a logarithm, and absent tasks stand still; and a loss below
    $10^{-8}$ of the largest has no say in the step, since $r$ would be infinite.

    Use it when many tasks of different scales fall into few kinds, and their weights should not
    flicker one by one. Not when losses come near zero: the weights grow as their inverse, and take
    the learning rate with them (`rescale="one"` stops that).

    Args:
        tasks: The names of the tasks, or their number.
        groups: K; above the number of tasks present each is its own group.
        step_size: $\beta$, in one over the unit of the losses.
        **options: See `Options`.

    Attributes:
        log_shares: $\log p$, `[T]`.

    Raises:
        ValueError: A loss is negative.

    Source: Shen et al., *GO4Align: group optimization for multi-task alignment*, NeurIPS 2024,
    arXiv 2404.06486, with the authors' code.
    """

    log_shares: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        groups: Count = 2,
        step_size: Positive = 1e-4,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(tasks, **options)
        self.groups = groups
        self.step_size = step_size
        self.register_buffer("log_shares", self.uniform().log())

    @property
    def nonnegative_losses(self) -> bool:
        """Shares of a sum of losses mean nothing where one is negative."""
        return True

    def weights_of(self, losses: Tensor) -> Tensor:
        slowed = -(self.step_size * losses).clamp_max(1)
        shares = shifted(self.log_shares[self.present], slowed)
        self.log_shares = updated(self.log_shares, self.present, shares)
        lowest = (1e-8 * losses.max()).clamp_min(torch.finfo(losses.dtype).tiny)
        counts = losses > lowest
        ratios = losses.sum() / torch.where(counts, losses, 1.0)
        raw = torch.where(counts, ratios * shares.softmax(0).to(losses), 0.0)
        return torch.where(counts, group_means(raw, counts, self.groups), 0.0)


class LDCMTL(LossStrategy):
    r"""Loss discrepancy control: learns weights that keep the weighted losses together.

    $$\mathcal{L} = \frac{\sum_i \sigma_i \tilde L_i}{\sum_i \sigma_i}
    + \lambda\, \Omega(\sigma \tilde L), \qquad
    \tilde L_i = \frac{L_i}{\tau_i}, \qquad
    \tau_i = \frac{L_i^{(0)}}{\min_j L_j^{(0)}}, \qquad \sigma = \operatorname{sigmoid}(s)$$

    with $L_i^{(0)}$ the first loss of task i that is not zero, and $s = 1$ at the start. The
    strategy minimises $\mathcal{L}$ over $s$ by itself, along with the network, with an Adam of its
    own. The discrepancy compares

    $$\Omega(x) = \sum_{i<T} |x_i - x_{i+1}| \;\text{(neighbours)}, \qquad
    \Omega(x) = \frac{2}{T} \sum_{i<j} |x_i - x_j| \;\text{(all)}$$

    The paper's is that of neighbours, which depends on the order in which the tasks were listed;
    ours by default is that of all pairs, which doesn't, in a scale that lets each task be pulled by
    as much, at most about $2 \lambda \sigma_i$. For two tasks they are the same. Ours too: the free
    logits of the authors' code in place of a router on the features, learned from $\mathcal{L} /
    \min_j L_j^{(0)}$ so that the unit of the losses doesn't matter, within [-10, 10]; differences
    below $10^{-6}$ of the two count as none, or rounding would move the first step. Beyond some
    dozen tasks a weight may be negative with the default $\lambda$.

    Use it when all losses should fall in step and T backward passes cost too much. Not when one
    task can't keep up: the others are held back to it.

    Args:
        tasks: The names of the tasks, or their number.
        penalty: $\lambda$. The authors take .01 to .1 by data set.
        pairs: Whose weighted losses are compared: `"all"`, or the paper's `"neighbours"`.
        learning_rate: That of $s$.
        **options: See `Options`.

    Attributes:
        logits: $s$, `[T]`.
        first_losses: $|L^{(0)}|$, `[T]`; zero where there was none yet.

    Source: Xiao et al., *LDC-MTL: balancing multi-task learning through scalable loss discrepancy
    control*, arXiv 2502.08585, with the authors' code for NYUv2.
    """

    logits: Tensor
    first_losses: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        penalty: NonNegative = 0.05,
        pairs: Literal["all", "neighbours"] = "all",
        learning_rate: Positive = 0.025,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(tasks, **options)
        self.penalty = penalty
        self.pairs = pairs
        self.register_buffer("logits", torch.ones(self.num_tasks))
        self.register_buffer("first_losses", torch.zeros(self.num_tasks))
        self.adam = Adam(self.num_tasks, learning_rate)

    def scalarize(self, losses: Tensor) -> Tensor:
        first = first_of(self.first_losses[self.present], losses.detach())
        self.first_losses = updated(self.first_losses, self.present, first)
        least = torch.where(self.first_losses > 0, self.first_losses, torch.inf).min()
        unit = torch.where(least < torch.inf, least, 1.0).to(losses)
        tau = torch.where(first > 0, first / unit, 1.0)
        s = self.logits[self.present].to(losses).requires_grad_()
        total = self._total_of(s.sigmoid(), losses / tau)
        (slope,) = torch.autograd.grad(total, s, retain_graph=True)
        self.logits = self.adam.step(self.logits, self.present, slope / unit).clamp(-10, 10)
        return total

    def _total_of(self, sigma: Tensor, losses: Tensor) -> Tensor:
        x = sigma * losses
        if self.pairs == "all":
            discrepancy = _distances(x[:, None], x).sum() / len(x)
        else:
            discrepancy = _distances(x[:-1], x[1:]).sum()
        return x.sum() / sigma.sum() + self.penalty * discrepancy


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Returns |x - y|, flat where that is rounding: its sign would be worth a step of Adam."""
    apart = (x - y).abs()
    return torch.where(apart > 1e-6 * (x.abs() + y.abs()), apart, 0.0)


def group_means(x: Tensor, counts: Tensor, groups: int) -> Tensor:
    """Returns for each of n numbers the mean of its group, in the best split into groups.

    The split with the least sum of squared distances to the means, by dynamic programming over the
    sorted numbers; on the device, in about n^3 operations at once.

    Args:
        x: The numbers, `[n]`.
        counts: Whether each counts; the others only take part by their place. `[n]`, bool.
        groups: The number of groups; n if that is less.
    """
    x, order = x.sort()
    place = torch.arange(len(x), device=x.device)
    begin, end = place[:, None], place[None, :]
    # inside[i, j, k]: whether k is in the run from i to j, and counts
    inside = (place >= begin[..., None]) & (place <= end[..., None]) & counts[order]
    sizes = inside.sum(-1).clamp_min(1)
    means = (inside * x).sum(-1) / sizes
    costs = (inside * (x - means[..., None]).square()).sum(-1)
    costs = torch.where(begin <= end, costs, torch.inf)
    # least[j]: the cost of the best split of the first j + 1 numbers; begins: of its last group
    least, begins = costs[0], []
    for _ in range(min(groups, len(x)) - 1):
        before = torch.cat([torch.full_like(least[:1], torch.inf), least[:-1]])
        least, last = (before[:, None] + costs).min(0)
        begins.append(last)
    start, stop = torch.zeros_like(place), place[-1:]
    for last in reversed(begins):
        first = last.gather(0, stop)
        start = torch.where((place >= first) & (place <= stop), first, start)
        stop = (first - 1).clamp_min(
            0
        )  # where a loss is not a number, no index may leave the range
    together = (start[:, None] == start) & counts[order]
    own = (together * x).sum(1) / together.sum(1).clamp_min(1)
    return torch.zeros_like(x).scatter(0, order, own)
