"""Combining gradients coordinate by coordinate."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from mtlweight.distributed import sum_over_ranks
from mtlweight.gradient_strategy import GradientStrategy
from mtlweight.inputs import Metrics, Step
from mtlweight.options import GradientOptions, Natural, Tasks
from mtlweight.per_task import per_task
from mtlweight.pieces import in_pieces, sample_of, sizes_of
from mtlweight.strategy import Weighed
from mtlweight.task_gradients import Parts, Shared, listed


class GradDrop(GradientStrategy):
    r"""Gradient sign dropout: in each coordinate keeps the gradients of one sign, drawn by lot.

    $$P = \frac12 \Big( 1 + \frac{\sum_i x_i}{\sum_i |x_i|} \Big), \qquad
    M_i = [P > U][x_i > 0] + [P < U][x_i < 0], \qquad
    d = \sum_i \big( \ell_i + (1 - \ell_i) M_i \big) g_i$$

    with U uniform in each coordinate: the positive side is kept with the share P that it has of the
    sizes, and where all agree, all are kept.

    Given features z, as in the paper, $x_i$ is $\operatorname{sign}(z)\, g_i$ summed over the items
    of the batch, dimension 0 of z, and all items share the lot of a coordinate. With respect to
    parameters (ours), $x_i = g_i$. The weights reported are the shares of each gradient that are
    kept, by the sum of the sizes of its entries, told by at most some $2^{15}$ of them.

    Use it when tasks conflict in a few coordinates and agree in most, and noise is welcome: the
    mean over the lots pulls the larger side, and points that suit one task alone are not stable.
    Not when there are many tasks: half of each gradient is then thrown away at random, and the step
    is mostly noise.

    Args:
        tasks: The names of the tasks, or their number.
        leak: $\ell$, within [0, 1], what passes in any case: a number, or one for each task, as a
            mapping from task name, or `[T]`.
        seed: Seeds the lots.
        **options: See `GradientOptions`.

    Attributes:
        leaks: $\ell$, `[T]`.

    Raises:
        OptionError: A leak is missing, or not within [0, 1].

    Source: Chen et al., *Just pick a sign: optimizing deep multitask models with gradient sign
    dropout*, NeurIPS 2020, arXiv 2010.06808, algorithm 1, with the identity for f.
    """

    refuses_infinite: ClassVar[bool] = True
    leaks: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        leak: float | Metrics = 0.0,
        seed: Natural = 0,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(tasks, **options)
        if isinstance(leak, int | float):
            leak = dict.fromkeys(self.tasks, float(leak))
        leaks = per_task(self.tasks, leak, "leak", lambda x: 0 <= x <= 1, "be within [0, 1]")
        self.seed = seed
        self.leaky = any(leaks.values())
        self.features: list[Tensor] = []
        self.register_buffer("leaks", torch.tensor(list(leaks.values())))

    @property
    def ordered(self) -> bool:
        """Yes: lots are drawn by place."""
        return True

    def weigh_step(self, step: Step, shared: Shared | None) -> Weighed:
        """Returns the weights of the losses, to be spent with the gradient that goes with them."""
        shared = listed(shared)
        self.features = [z.detach() for z in shared or [] if z.requires_grad and not z.is_leaf]
        try:
            return super().weigh_step(step, shared)
        finally:
            self.features = []

    def combine(self, gradients: Tensor, losses: Tensor) -> tuple[Tensor, Tensor | Parts]:
        if self.on_features:
            return self._combine_features(gradients, losses)
        lots = _lots(gradients.shape[1], self.generator()).to(gradients)
        total, signs = torch.empty_like(lots), lots  # each lot gives way to the sign that it keeps
        for g, u, d in in_pieces(gradients, lots, total):
            x, absolute = g.sum(0), g.abs().sum(0)
            sign = torch.addcmul(x, u, absolute, value=-1, out=u).sign_()
            torch.addcmul(x, sign, absolute, out=d).mul_(0.5)
        if not total.sum().isfinite():
            self.refuse_infinite(sizes_of(gradients))
        leaks = self.leaks[self.present].to(gradients)
        seen = sample_of(gradients)
        weights = _shares(seen, _masked(seen, sample_of(signs), leaks), 1.0).to(losses)
        masked = partial(_masked, gradients, signs, leaks)
        return weights, Parts(torch.ones_like(weights), masked, None if self.leaky else total)

    def _combine_features(self, gradients: Tensor, losses: Tensor) -> tuple[Tensor, Tensor | Parts]:
        generator, numbers = self.generator(), [z.numel() for z in self.features]
        kept = torch.cat(
            [
                self._drop_by_item(z, g, generator)
                for z, g in zip(self.features, torch.split(gradients, numbers, dim=1), strict=True)
            ],
            dim=1,
        )
        if not sum_over_ranks(kept.sum()).isfinite():
            self.refuse_infinite(sum_over_ranks(sizes_of(gradients)))
        seen = sample_of(gradients)
        weights = _shares(seen, sample_of(kept), 1.0, over_ranks=True).to(losses)
        return weights, Parts(torch.ones_like(weights), kept)

    def _drop_by_item(self, z: Tensor, gradients: Tensor, generator: torch.Generator) -> Tensor:
        """Returns what is kept of gradients `[n, B * K]` of features z."""
        items = z.shape[0] if z.ndim else 1
        signs = z.reshape(items, -1).sign().to(gradients)
        g = gradients.reshape(len(gradients), *signs.shape)
        x = sum_over_ranks(torch.stack([(signs * mine).sum(0) for mine in g]))
        kept = (x.sum(0) - _lots(x.shape[1], generator).to(x) * x.abs().sum(0)).sign()
        mask = (x * kept > 0)[:, None]
        leaks = self.leaks[self.present].to(gradients)
        return (g * mask).view_as(gradients).lerp_(gradients, leaks[:, None])


def _shares(rows: Tensor, kept: Tensor, otherwise: float, *, over_ranks: bool = False) -> Tensor:
    """Returns the share of the size of each row `[n, P]` that was kept, `[n]`.

    A row of zeros has the share that is given.
    """
    sizes = torch.stack([sizes_of(rows), sizes_of(kept)])
    before, after = sum_over_ranks(sizes) if over_ranks else sizes
    return torch.where(before > 0, after / before, otherwise)


def _lots(count: int, generator: torch.Generator) -> Tensor:
    """Returns random numbers between -1 and 1, `[count]`, never these themselves.

    Four of 16 bits from each draw, in a third of the time: a share is met within 2^-17.
    """
    bits = torch.empty((count + 3) // 4, dtype=torch.int64)
    bits.random_(-(2**63), None, generator=generator)
    return bits.view(torch.int16)[:count].to(torch.float32).add_(0.5).mul_(2.0**-15)


def _masked(gradients: Tensor, signs: Tensor, leaks: Tensor) -> Tensor:
    """Returns what passes of gradients `[n, P]`, given the signs `[P]` that are kept."""
    kept = torch.addcmul(gradients, signs, gradients.abs()).div_(2)
    return kept.lerp_(gradients, leaks[:, None])


class TrimmedMean(GradientStrategy):
    r"""The mean of the gradients without the extremes of each coordinate.

    $$d_p = \frac{1}{T - 2b} \sum_{i=b+1}^{T-b} g_{(i)p}$$

    with $g_{(1)p} \le \dots \le g_{(T)p}$ the gradients in coordinate p, in order. Tasks that tie
    for the last place that is cut lose equal shares. With fewer than $2b+1$ tasks present, b is as
    large as leaves one: the median of an odd number, the mean of one or two (ours). The weights
    reported are the shares of each gradient that are kept, by the sum of the sizes of its entries
    (told by at most some $2^{15}$ of them), over $T - 2b$.

    Use it when there are many tasks of one kind, as clients or domains are, of which some few may
    have gradients that are wrong or out of scale. Not when tasks are few or differ in kind: what
    sets a task apart is then what is cut.

    Args:
        tasks: The names of the tasks, or their number.
        trim: b, how many are cut at each end.
        **options: See `GradientOptions`.

    Source: Yin, Chen, Ramchandran & Bartlett, *Byzantine-robust distributed learning: towards
    optimal statistical rates*, ICML 2018, definition 2.
    """

    def __init__(
        self, tasks: Tasks, *, trim: Natural = 1, **options: Unpack[GradientOptions]
    ) -> None:
        super().__init__(tasks, **options)
        self.trim = trim

    def combine(self, gradients: Tensor, losses: Tensor) -> tuple[Tensor, Tensor | Parts]:
        n = len(gradients)
        b = min(self.trim, (n - 1) // 2)
        mean = torch.full_like(losses, 1 / (n - 2 * b))
        if b == 0:
            return mean, Parts(mean, gradients)
        total = gradients.new_empty(gradients.shape[1])
        for g, d in in_pieces(gradients, total):
            torch.div(_apart(g, b)[1], n - 2 * b, out=d)
        seen = sample_of(gradients)
        share = _shares(seen, _trimmed(seen, b), 1 - 2 * b / n, over_ranks=self.on_features)
        return mean * share.to(mean), Parts(mean, partial(_trimmed, gradients, b), total)


def _trimmed(gradients: Tensor, b: int) -> Tensor:
    """Returns gradients `[n, P]` without the b extremes of each column at either end."""
    pieces = []
    for (g,) in in_pieces(gradients):
        share = torch.ones_like(g)
        for extreme in _apart(g, b)[0]:
            tied = torch.eq(g, extreme, out=torch.empty_like(g))
            share -= tied / tied.sum(0)
        pieces.append(share * g)
    return torch.cat(pieces, dim=1)


def _apart(g: Tensor, b: int) -> tuple[list[Tensor], Tensor]:
    """Returns the b largest and b smallest entries of each column, and the sum of the rest.

    Row by row, against the extremes so far: for a small b some times faster than a sort. The sum of
    all less that of the extremes would be their rounding where these are large.
    """
    largest: list[Tensor] = []
    smallest: list[Tensor] = []
    rest = torch.zeros_like(g[0])
    for x in g:
        for held, outer, inner in (
            (largest, torch.maximum, torch.minimum),
            (smallest, torch.minimum, torch.maximum),
        ):
            for k, extreme in enumerate(held):
                held[k], x = outer(extreme, x), inner(extreme, x)
            if len(held) < b:
                held.append(x)
                break
        else:
            rest += x
    return largest + smallest, rest
