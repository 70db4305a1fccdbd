"""Weights that follow the gradient of a main loss."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor

from mtlweight.gradient_strategy import GramStrategy
from mtlweight.options import GramOptions, Natural, NonNegative, Tasks, main_task


class VQGAN(GramStrategy):
    r"""VQGAN's adaptive weight: every other gradient as long as that of the main loss.

    $$w_{main} = 1, \qquad
    w_i = c \cdot \min \big( \lVert g_{main} \rVert / \lVert g_i \rVert,\ 10^4 \big)$$

    and $w_i = 0$ before `start_step`, when the discriminator behind an adversarial loss still knows
    nothing. The paper has two losses, reconstruction and adversarial; with more, each is treated as
    the adversarial one (ours). Its $10^{-4}$ in the denominator is left out (ours): gradients above
    it don't feel it, and those below were given less than their share. A task without gradient, and
    all in a step without the main task, have weight c (ours).

    The paper takes gradients with respect to the last layer of the decoder: give
    `shared=last_layer.parameters()`, which costs T short backward passes beside the usual one. By
    default they are taken with respect to all that is shared (ours). The weights multiply whole
    losses.

    Use it when one loss is the goal and the others shape it, as adversarial and perceptual losses
    do in image restoration. Not when no loss is the main one, or the main loss is nearly done: the
    others fade with its gradient.

    Args:
        tasks: The names of the tasks, or their number.
        main: The name of the main task; the first by default.
        weight: c, the length of every other gradient relative to the main one.
        start_step: The number of steps without the others.
        **options: See `GramOptions`.

    Raises:
        OptionError: `main` is not one of the tasks.

    Source: Esser, Rombach & Ommer, *Taming transformers for high-resolution image synthesis*, CVPR
    2021, equation 7, and the authors' code.
    """

    paper_weights_heads: ClassVar[bool] = True

    def __init__(
        self,
        tasks: Tasks,
        *,
        main: str | None = None,
        weight: NonNegative = 1.0,
        start_step: Natural = 0,
        **options: Unpack[GramOptions],
    ) -> None:
        super().__init__(tasks, **options)
        self.main = main_task(self.tasks, main)
        self.weight = weight
        self.start_step = start_step

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        is_main = torch.tensor([i == self.main for i in self.index])
        weight = self.weight if self.step >= self.start_step else 0.0
        if not is_main.any():
            return torch.full_like(losses, weight)
        norms = gram.diagonal().sqrt()
        ratios = torch.where(norms > 0, (norms[is_main] / norms).clamp_max(1e4), 1.0)
        return torch.where(is_main, 1.0, weight * ratios)
