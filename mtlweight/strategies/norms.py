"""Balancing the lengths of the task gradients."""

from __future__ import annotations

from typing import ClassVar, Literal, Unpack

import torch
from torch import Tensor

from mtlweight.gradient_strategy import GramStrategy, MemoryStrategy
from mtlweight.options import GradientOptions, GramOptions, NonNegative, Past, Tasks
from mtlweight.running import updated, widened
from mtlweight.task_gradients import Parts

Scale = Literal["sum_norm", "mean_norm", "mean_of_norms", "max_norm", "one"]


class AvgNorm(GramStrategy):
    r"""Gradient-norm loss scaling: gives every task gradient the same length.

    $$w_i = S / \lVert g_i \rVert, \qquad S = \Big\lVert \sum_j g_j \Big\rVert$$

    The paper takes $g_i$ with respect to the last layer of the shared backbone: give
    `shared=last_layer.parameters()`, which costs T short backward passes beside the usual one. By
    default it is taken with respect to all that is shared (ours). The weights multiply whole
    losses, heads included. A task without gradient gets the mean weight of the others.

    Use it when gradients differ in length, whatever the reason, and each task should move the
    network as much as any other. Not when a gradient is short because its task is done: what is
    left of it, mostly noise, is made as long as the others.

    Args:
        tasks: The names of the tasks, or their number.
        scale: The common length S: `"sum_norm"` as above, `"mean_norm"` $\lVert \frac1T \sum g_j
            \rVert$, `"mean_of_norms"` $\frac1T \sum \lVert g_j \rVert$, `"max_norm"`, or `"one"`.
        **options: See `GramOptions`.

    Source: Guo et al., *Revisit the imbalance optimization in multi-task learning*, arXiv
    2509.23915. The rule reached us through reading notes of section V-F, not the paper's own page.
    """

    paper_weights_heads: ClassVar[bool] = True

    def __init__(
        self, tasks: Tasks, *, scale: Scale = "sum_norm", **options: Unpack[GramOptions]
    ) -> None:
        super().__init__(tasks, **options)
        self.scale = scale

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        norms = gram.diagonal().sqrt()
        length = {
            "sum_norm": gram.sum().clamp_min(0).sqrt(),
            "mean_norm": gram.mean().clamp_min(0).sqrt(),
            "mean_of_norms": norms.mean(),
            "max_norm": norms.max(),
            "one": torch.ones_like(norms[0]),
        }[self.scale]
        moves = norms > 0
        weights = torch.where(moves, length / norms, 0.0)
        if not moves.any():
            return torch.full_like(norms, 1 / len(norms))
        return torch.where(moves, weights, weights[moves].mean())


class DBMTL(MemoryStrategy):
    r"""Dual-balancing: the logarithms of the losses, and gradients as long as their longest.

    $$h_i = \nabla \log(L_i + \epsilon), \qquad
    \hat g_i \leftarrow \beta_k \hat g_i + (1-\beta_k) h_i, \qquad
    d = \max_j \lVert \hat g_j \rVert \sum_i \hat g_i / \lVert \hat g_i \rVert$$

    with $\hat g_i = 0$ at the start and $\beta_k = \beta / k^\sigma$ in step k. Heads get $h_i$.
    Keeps T gradients in memory, also in `state_dict()`, unless $\beta = 0$. Given features, which
    are of other samples in each step, it goes by the gradients of the step alone (ours).

    The paper searches $\beta_k$ in {.1, .5, .9} and {.1, .5, .9} / √k for each data set; its own
    study finds a constant .9, the default of the authors' library, the worst. Ours is .5 / √k.

    Use it when losses differ in unit and gradients in length, and T gradients fit in memory. Not
    when a loss can reach zero: its logarithm has no end, and the step is as long as the longest of
    the gradients. Nor when a loss may be negative.

    Args:
        tasks: The names of the tasks, or their number.
        beta: $\beta$, the share of the past in the first step, below one.
        beta_sigma: $\sigma$, how fast it falls.
        **options: See `GradientOptions`.

    Attributes:
        averages: $\hat g$, `[T, P]`.

    Raises:
        ValueError: A loss is negative; or what the tasks share has become less (what is added to it
            begins at zero).

    Source: Lin et al., *Dual-balancing for multi-task learning*, arXiv 2308.12029, algorithm 1.
    """

    growing: ClassVar[tuple[str, ...]] = ("averages",)
    refuses_infinite: ClassVar[bool] = True
    epsilon = 1e-8
    averages: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        beta: Past = 0.5,
        beta_sigma: NonNegative = 0.5,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(tasks, **options)
        self.beta = beta
        self.beta_sigma = beta_sigma
        self.register_buffer("averages", torch.zeros(self.num_tasks, 0))

    @property
    def nonnegative_losses(self) -> bool:
        """The logarithm of a negative loss has a gradient, but it points the wrong way."""
        return True

    def combine(self, gradients: Tensor, losses: Tensor) -> tuple[Tensor, Tensor | Parts]:
        slopes = self.paper_heads(losses, losses)
        if not gradients.numel():  # nothing is known to be shared, and all leaves are heads
            return slopes, gradients.sum(0)
        beta = self.beta / (self.step + 1) ** self.beta_sigma
        averages = gradients.mul_((1 - beta) * slopes.to(gradients)[:, None])
        if beta > 0:
            past = widened(self.averages, gradients)
            averages = averages.add_(past[self.present], alpha=beta)
            self.averages = updated(past, self.present, averages)
        norms = torch.linalg.vector_norm(averages, dim=1)
        self.refuse_infinite(norms)
        scales = self._scales(norms)
        return (1 - beta) * scales.to(losses) * slopes, Parts(scales, averages)

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        slopes = self.paper_heads(losses, losses)
        return self._scales(slopes * gram.diagonal().sqrt()) * slopes

    def _scales(self, norms: Tensor) -> Tensor:
        """Returns what makes averages as long as the longest, given their lengths, `[n]`."""
        # The paper's epsilon, relative to the longest: tiny gradients behave like large ones.
        lengths = norms + self.epsilon * norms.max()
        still = (norms.max() == 0).to(norms)  # then no length is a measure of another
        return torch.where(norms > 0, norms.max() / lengths, still)

    def paper_heads(self, weights: Tensor, losses: Tensor) -> Tensor:
        """Returns the slopes of the logarithms, `[n]`."""
        return 1 / (losses + self.epsilon)
