"""Balancing losses by their gradients at the output that they share."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor

from mtlweight.distributed import sum_over_ranks, world_size
from mtlweight.gradient_strategy import GramStrategy
from mtlweight.inputs import Metrics
from mtlweight.loss_strategy import among
from mtlweight.options import GramOptions, Past, Positive, Tasks
from mtlweight.per_task import per_task, positive
from mtlweight.running import updated
from mtlweight.task_gradients import Taken, TaskGradients


class EnCodec(GramStrategy):
    r"""The loss balancer of EnCodec: gives each loss its share of the gradient at the output.

    $$n_i = \frac1B \sum_b \lVert \partial L_i / \partial y_b \rVert, \qquad
    \langle n_i \rangle = \frac{\sum_k \beta^{K-k} n_i^{(k)}}{\sum_k \beta^{K-k}}, \qquad
    w_i = \frac{\lambda_i}{\sum_j \lambda_j} \frac{R}{\langle n_i \rangle}$$

    with y the output of the network for the B items of a batch: `strategy(losses, shared=output)`.
    The ratios $\lambda$ say how much each loss moves the output, whatever the scale of the losses,
    and the network is walked backwards once. Several outputs of the same B items count as one.

    Ours: parameters given or found as what is shared count as a single item; a step in which a loss
    has no gradient leaves its mean as it is, where it would enter as a zero, and a loss that never
    had one gets the mean weight of the others. Saved and loaded with the strategy, which the
    published code does not do.

    Use it when losses of different kinds judge the same output, as pixel, perceptual and
    adversarial losses do in super-resolution, and their shares should be set rather than searched
    for. Not when tasks have outputs of their own, and nothing but parameters in common.

    Args:
        tasks: The names of the tasks, or their number.
        ratios: $\lambda$, positive: a mapping from task name, or `[T]`; equal by default.
        total_norm: R, which is a factor of the learning rate.
        beta: $\beta$, the share of the past in the mean lengths.
        **options: See `GramOptions`.

    Attributes:
        sums: The numerators of the mean lengths, `[T]`.
        counts: Their denominators, `[T]`.

    Raises:
        OptionError: A ratio is missing or not positive.
        ValueError: The features given are of unequal numbers of items.

    Source: Défossez, Copet, Synnaeve & Adi, *High fidelity neural audio compression*, arXiv
    2210.13438, section 3.4, with the authors' code.
    """

    paper_weights_heads: ClassVar[bool] = True
    shares: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        ratios: Metrics | None = None,
        total_norm: Positive = 1.0,
        beta: Past = 0.999,
        **options: Unpack[GramOptions],
    ) -> None:
        super().__init__(tasks, **options)
        self.total_norm = total_norm
        self.beta = beta
        self.lengths: Tensor | None = None
        shares = self.uniform()
        if ratios is not None:
            given = per_task(self.tasks, ratios, "ratios", positive, "be positive")
            shares = torch.tensor(list(given.values()))
        self.register_buffer("shares", shares / shares.sum())
        self.register_buffer("sums", torch.zeros(self.num_tasks))
        self.register_buffer("counts", torch.zeros(self.num_tasks))

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        lengths = gram.diagonal().sqrt() if self.lengths is None else self.lengths
        moves = lengths > 1e-30 * lengths.max()
        here = self.sums[self.present]
        sums, counts = here.cpu().double(), self.counts[self.present].cpu().double()
        sums = torch.where(moves, self.beta * sums + lengths.clamp_max(1e30), sums)
        counts = torch.where(moves, self.beta * counts + 1, counts)
        self.sums = updated(self.sums, self.present, sums.to(here))
        self.counts = updated(self.counts, self.present, counts.to(here))
        shares = among(self.shares, self.present).cpu().double()
        known = counts > 0
        if not known.any():
            return shares
        inverse = counts / sums.clamp_min(1e-30)
        weights = torch.where(known, self.total_norm * shares * inverse, 0.0)
        return torch.where(known, weights, weights.sum() / known.sum())

    def _gram(self, gradients: TaskGradients) -> Tensor:
        """Returns the inner products, and notes the mean length of the items of features."""
        gram = super()._gram(gradients)
        self.lengths = None
        if gradients.of_features:
            assert isinstance(gradients, Taken)
            lengths = gradients.item_lengths()
            items = lengths.new_tensor([lengths.shape[1]])
            sums = sum_over_ranks(torch.cat([lengths.sum(1), items])).cpu().double()
            self.lengths = sums[:-1] / sums[-1] / world_size()
        return gram
