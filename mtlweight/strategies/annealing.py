"""Weights from the sizes of the entries of the task gradients."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
import torch.distributed as dist
from torch import Tensor

from mtlweight.distributed import sum_over_ranks, world_size
from mtlweight.gradient_strategy import GradientStrategy
from mtlweight.options import GradientOptions, Past, Tasks, main_task
from mtlweight.pieces import in_pieces
from mtlweight.products import widest
from mtlweight.running import updated
from mtlweight.task_gradients import Parts


class LRA(GradientStrategy):
    r"""Learning-rate annealing: lifts side losses to the largest entries of the main gradient.

    $$\hat\lambda_i = \frac{\max_p |\partial L_m / \partial \theta_p|}
    {\operatorname{mean}_p |\partial L_i / \partial \theta_p|}, \qquad
    \lambda_i \leftarrow \beta \lambda_i + (1-\beta) \hat\lambda_i, \qquad
    \mathcal{L} = L_m + \sum_{i \ne m} \lambda_i L_i$$

    from $\lambda = 1$, with m the main loss, whose weight stays one. In the paper that is the
    residual of the differential equation, and the others are boundary and initial conditions.

    As in the authors' code, the past has the share .9; the formula of the paper is also read the
    other way round. Their code takes the mean over the gradient of $\lambda_i L_i$, ours over that
    of $L_i$, as the formula has it. Ours: without a gradient of the main or the side loss,
    $\lambda_i$ stays as it is. For an update every ten steps, as the authors do, write
    `Every(10, LRA(tasks))`.

    Use it when one loss drowns the others and its gradient has a few large entries, as stiff
    differential equations have. Not when there is no main loss, or losses are on the same scale:
    a maximum over a mean is some tens to hundreds even for equal gradients, and the side losses
    then rule.

    Args:
        tasks: The names of the tasks, or their number.
        main: The name of the main task; by default the first.
        beta: $\beta$, the share of the past.
        **options: See `GradientOptions`.

    Attributes:
        ratios: $\lambda$, `[T]`.

    Raises:
        OptionError: `main` is not the name of a task.

    Source: Wang, Teng & Perdikaris, *Understanding and mitigating gradient flow pathologies in
    physics-informed neural networks*, SIAM J. Sci. Comput. 2021, arXiv 2001.04536, algorithm 1.
    """

    paper_weights_heads: ClassVar[bool] = True
    refuses_infinite: ClassVar[bool] = True
    ratios: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        main: str | None = None,
        beta: Past = 0.9,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(tasks, **options)
        self.main = main_task(self.tasks, main)
        self.beta = beta
        self.register_buffer("ratios", torch.ones(self.num_tasks))

    def combine(self, gradients: Tensor, losses: Tensor) -> tuple[Tensor, Tensor | Parts]:
        ratios = self.ratios[self.present]
        if gradients.shape[1]:
            main = self.index.index(self.main) if self.main in self.index else None
            peak, means = self._peak_and_means(gradients, main)
            self.refuse_infinite(means)
            known = (peak > 0) & (means > 1e-30 * peak)
            if main is not None:
                known[main] = False
            new = torch.where(known, peak / means, ratios.to(means)).clamp_max(1e30).to(ratios)
            ratios = torch.where(known, torch.lerp(new, ratios, self.beta), ratios)
            self.ratios = updated(self.ratios, self.present, ratios)
        weights = ratios.to(losses)
        return weights, Parts(weights, gradients)

    def _peak_and_means(self, gradients: Tensor, main: int | None) -> tuple[Tensor, Tensor]:
        """Returns the largest entry of the main one, and the mean of each, over all ranks.

        The former is zero if the main one is absent.
        """
        sums = gradients.new_zeros(len(gradients), dtype=widest(gradients))
        peak = gradients.new_zeros(())
        for (g,) in in_pieces(gradients):
            sizes = g.abs()
            sums += sizes.sum(1)
            if main is not None:
                peak = torch.maximum(peak, sizes[main].max())
        if not self.on_features or world_size() == 1:
            return peak, sums / gradients.shape[1]
        dist.all_reduce(peak, dist.ReduceOp.MAX)
        total = sum_over_ranks(torch.cat([sums, sums.new_tensor([gradients.shape[1]])]))
        return peak / world_size(), total[:-1] / total[-1] / world_size()
