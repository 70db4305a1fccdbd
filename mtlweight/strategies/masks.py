"""Combining gradients coordinate by coordinate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Unpack

import torch
from pydantic import Field
from torch import Tensor

from mtlweight.distributed import sum_over_ranks
from mtlweight.inputs import Metrics, Step
from mtlweight.options import GradientOptions, OptionError, Seed, Tasks
from mtlweight.strategies.fixed import per_task
from mtlweight.strategy import GradientStrategy, Parts, Weighed
from mtlweight.task_gradients import Shared

Trim = Annotated[int, Field(ge=0)]


class _Masks(GradientStrategy):
    """A strategy that keeps some of the entries of the task gradients."""

    def __init__(self, tasks: Tasks, **options: Unpack[GradientOptions]) -> None:
        super().__init__(tasks, **options)

    def _sizes(self, gradients: Tensor) -> Tensor:
        """Returns the sum of the sizes of the entries of each gradient, over all ranks, `[n]`."""
        sizes: Tensor = torch.linalg.vector_norm(gradients, ord=1, dim=1)
        return sum_over_ranks(sizes) if self.on_features else sizes


class GradDrop(_Masks):
    r"""Gradient sign dropout: in each coordinate keeps the gradients of one sign, drawn by lot.

    $$P = \frac12 \Big( 1 + \frac{\sum_i x_i}{\sum_i |x_i|} \Big), \qquad
    M_i = [P > U][x_i > 0] + [P < U][x_i < 0], \qquad
    d = \sum_i \big( \ell_i + (1 - \ell_i) M_i \big) g_i$$

    with U uniform in each coordinate: the positive side is kept with the share P that it has of the
    sizes, and where all agree, all are kept.

    Given features z, as in the paper, $x_i$ is $\operatorname{sign}(z)\, g_i$ summed over the items
    of the batch, dimension 0 of z, and all items share the lot of a coordinate. With respect to
    parameters (ours), $x_i = g_i$. The weights reported are the shares of each gradient that are
    kept, by the sum of the sizes of its entries.

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

    leaks: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        leak: float | Metrics = 0.0,
        seed: Seed = 0,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(tasks, **options)
        if isinstance(leak, int | float):
            leak = dict.fromkeys(self.tasks, float(leak))
        leaks = per_task(self.tasks, leak, "leak")
        if bad := [task for task, number in leaks.items() if not 0 <= number <= 1]:
            raise OptionError(
                f"The leak of task {bad[0]!r} is {leaks[bad[0]]!r}: it must be within [0, 1]."
            )
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
        if shared is not None and not isinstance(shared, Tensor):
            shared = list(shared)
        given = [shared] if isinstance(shared, Tensor) else shared or []
        self.features = [z.detach() for z in given if z.requires_grad and not z.is_leaf]
        try:
            return super().weigh_step(step, shared)
        finally:
            self.features = []

    def combine(self, gradients: Tensor, losses: Tensor) -> tuple[Tensor, Tensor | Parts]:
        generator, sizes = self.generator(), self._sizes(gradients)
        if self.on_features:
            numbers = [z.numel() for z in self.features]
            for z, g in zip(self.features, torch.split(gradients, numbers, dim=1), strict=True):
                self._drop_by_item(z, g, generator)
        else:
            draws = torch.rand(gradients.shape[1], generator=generator).to(gradients.device)
            for g, u in in_pieces(gradients, draws[None]):
                positive = g.clamp_min(0)
                keeps = _keeps_positive(positive, g, u[0])
                self._overwrite(g, torch.where(keeps, positive, g - positive))
        kept = self._sizes(gradients)
        weights = torch.where(sizes > 0, kept / sizes, 1.0).to(losses)
        return weights, Parts(torch.ones_like(weights), gradients)

    def _drop_by_item(self, z: Tensor, gradients: Tensor, generator: torch.Generator) -> None:
        """Drops from gradients `[n, B * K]` of features z."""
        items = z.shape[0] if z.ndim else 1
        signs = z.reshape(items, -1).sign().to(gradients)
        g = gradients.view(len(gradients), *signs.shape)
        x = sum_over_ranks(torch.stack([(signs * mine).sum(0) for mine in g]))
        draws = torch.rand(x.shape[1], generator=generator).to(x.device)
        mask = torch.where(_keeps_positive(x.clamp_min(0), x, draws), x > 0, x < 0)
        self._overwrite(gradients, (g * mask[:, None]).view_as(gradients))

    def _overwrite(self, gradients: Tensor, kept: Tensor) -> None:
        if self.leaky:
            kept.lerp_(gradients, self.leaks[self.present].to(gradients)[:, None])
        gradients.copy_(kept)


class TrimmedMean(_Masks):
    r"""The mean of the gradients without the extremes of each coordinate.

    $$d_p = \frac{1}{T - 2b} \sum_{i=b+1}^{T-b} g_{(i)p}$$

    with $g_{(1)p} \le \dots \le g_{(T)p}$ the gradients in coordinate p, in order. Tasks that tie
    for the last place that is cut lose equal shares. With fewer than $2b+1$ tasks present, b is as
    large as leaves one: the median of an odd number, the mean of one or two (ours). The weights
    reported are the shares of each gradient that are kept, by the sum of the sizes of its entries,
    over $T - 2b$.

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

    def __init__(self, tasks: Tasks, *, trim: Trim = 1, **options: Unpack[GradientOptions]) -> None:
        super().__init__(tasks, **options)
        self.trim = trim

    def combine(self, gradients: Tensor, losses: Tensor) -> tuple[Tensor, Tensor | Parts]:
        n = len(gradients)
        b = min(self.trim, (n - 1) // 2)
        mean = torch.full_like(losses, 1 / (n - 2 * b))
        if b == 0:
            return mean, Parts(mean, gradients)
        sizes = self._sizes(gradients)
        for (g,) in in_pieces(gradients):
            g.mul_(1 - _cut(g, b) - _cut(g, b, largest=False))
        kept = self._sizes(gradients)
        share = torch.where(sizes > 0, kept / sizes, 1 - 2 * b / n)
        return mean * share.to(mean), Parts(mean, gradients)


def in_pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yields tensors `[n, P]` in pieces of some columns, which the cache of a processor holds."""
    rows = max(len(tensor) for tensor in tensors)
    numbers = 1 << 17 if tensors[0].is_cpu else 1 << 24
    columns = max(1, numbers // rows)
    return zip(*(torch.split(tensor, columns, dim=1) for tensor in tensors), strict=True)


def _keeps_positive(positive: Tensor, x: Tensor, draws: Tensor) -> Tensor:
    """Returns where P > U, given the positive parts of x `[n, K]` and U `[K]`."""
    above = positive.sum(0)
    below = (positive - x).sum(0)
    return draws * (above + below) < above


def _cut(x: Tensor, b: int, largest: bool = True) -> Tensor:
    """Returns how much of each entry `[n, K]` is cut as one of the b extremes of its column."""
    if b == 1:  # some times faster than the general case
        cut = (x == (x.amax(0) if largest else x.amin(0))).to(x.dtype)
        return cut.div_(cut.sum(0))
    last = _extreme(x, b, largest)
    beyond, tied = (x > last if largest else x < last).to(x), (x == last).to(x)
    return beyond + tied * ((b - beyond.sum(0)) / tied.sum(0))


def _extreme(x: Tensor, b: int, largest: bool) -> Tensor:
    """Returns the b-th largest or smallest entry of each column, `[K]`.

    Row by row, against the b best so far: for a small b some times faster than a sort.
    """
    better, worse = (torch.maximum, torch.minimum) if largest else (torch.minimum, torch.maximum)
    best: list[Tensor] = []
    for row in x:
        for k, held in enumerate(best):
            best[k], row = better(held, row), worse(held, row)
        if len(best) < b:
            best.append(row)
    return best[-1]
