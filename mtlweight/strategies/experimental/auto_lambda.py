"""Weights that lower the held-out losses of the primary tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from mtlweight.look_ahead import Surroundings
from mtlweight.options import Finite, GradientOptions, NonNegative, OptionError, Positive, Tasks
from mtlweight.running import Adam
from mtlweight.strategies.experimental.bilevel import Bilevel, Closure, products


class AutoLambda(Bilevel):
    r"""Auto-Lambda (experimental): learns the weights whose next step lowers held-out losses.

    $$\theta' = \theta - \alpha \Big(\sum_i \lambda_i \nabla L_i + \delta\, \theta\Big), \qquad
    v = \nabla_{\theta'} \sum_{i \in \text{primary}} L_i^{val}, \qquad
    \lambda_i \leftarrow \mathrm{Adam}\big(\lambda_i,\ -\alpha \langle v, \nabla L_i \rangle\big)$$

    and the step is along $\sum_i \lambda_i \nabla L_i$ with the new $\lambda$. A weight may become
    negative. The authors take the inner products by finite differences, from two more forward
    passes; ours are exact, from the gradient of each task. Their $\theta'$ also has the momentum of
    the optimizer, which a strategy does not see; ours is a plain gradient step. The slope of
    $\lambda$ is used within [-10, 10].

    Use it when some tasks are there to help others, with few tasks, a held-out batch at hand, and
    time for a pass of each task and two for the batch. Not when the losses differ much in scale:
    $\lambda$ moves by about `meta_learning_rate` in each step, whatever the scale.

    Args:
        tasks: The names of the tasks, or their number.
        validation: Computes the losses of the next held-out batch; see `Bilevel`.
        learning_rate: $\alpha$, that of the optimizer.
        primary: The tasks that matter; by default all. The held-out losses of others are ignored.
        initial: $\lambda$ at the start.
        meta_learning_rate: That of $\lambda$.
        weight_decay: $\delta$, that of the optimizer.
        **options: See `GradientOptions`.

    Attributes:
        lambdas: $\lambda$, `[T]`.

    Raises:
        OptionError: A primary task is unknown, or there is none.
        ValueError: A held-out loss is not finite, or can't be used; see `Bilevel`.

    Source: Liu, James, Davison & Johns, *Auto-Lambda: disentangling dynamic task relationships*,
    TMLR 2022, arXiv 2202.03091, eq. 4-6, with the constants of the authors' code.
    """

    lambdas: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        validation: Closure,
        learning_rate: Positive,
        primary: Sequence[str] | None = None,
        initial: Finite = 0.1,
        meta_learning_rate: Positive = 1e-4,
        weight_decay: NonNegative = 0.0,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(tasks, validation=validation, learning_rate=learning_rate, **options)
        self.primary = self.tasks if primary is None else tuple(primary)
        unknown = [task for task in self.primary if task not in self.tasks]
        if unknown or not self.primary:
            raise OptionError(
                f"`primary` is {list(self.primary)}, and the tasks are {', '.join(self.tasks)}: "
                "name at least one of them, and no others."
            )
        self.weight_decay = weight_decay
        self.register_buffer("lambdas", torch.full((self.num_tasks,), float(initial)))
        self.adam = Adam(self.num_tasks, meta_learning_rate)
        self.weights = self.lambdas.clone()

    def combine(
        self, gradients: Tensor, losses: Tensor, around: Surroundings
    ) -> tuple[Tensor, Tensor]:
        alpha = self.learning_rate
        direction = self.lambdas[self.present].to(gradients) @ gradients
        if self.weight_decay:
            direction = direction + self.weight_decay * around.here()
        with self.losses_at(around, -alpha * direction, self.validation, "validation") as there:
            self.refuse_infinite_losses(there, losses)
            chosen = [
                value
                for i, value in zip(there.index, there.values, strict=True)
                if self.tasks[i] in self.primary
            ]
            if not chosen:
                raise ValueError(
                    f"`validation` returns no loss of the primary tasks {', '.join(self.primary)}: "
                    "let it return that of at least one of them."
                )
            (v,) = around.gradients([torch.stack(chosen).sum()], "validation")
        slopes = (-alpha * products(gradients, v)).clamp(-10, 10).to(self.lambdas)
        self.lambdas = self.adam.step(self.lambdas, self.present, slopes)
        return self.lambdas[self.present].to(losses), gradients
