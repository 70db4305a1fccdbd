"""Weights from gradients that were sampled twice, so that their products are not biased."""

from __future__ import annotations

from abc import abstractmethod
from typing import Unpack

from torch import Tensor

from mtlweight.gradient_strategy import _ReadsGradients
from mtlweight.inputs import Step
from mtlweight.loss_strategy import among
from mtlweight.options import GradientOptions, NonNegative, Positive, Tasks
from mtlweight.products import exact_products, row_products
from mtlweight.running import updated
from mtlweight.solvers import directed_min_norm_point, simplex_projection
from mtlweight.strategy import Weighed
from mtlweight.task_gradients import (
    Rows,
    Shared,
    are_features,
    listed,
    products_of,
    rows_of,
)


class _DoubleSampling(_ReadsGradients):
    r"""A strategy that reads the products of the task gradients of two independent batches.

    The Gram matrix of one batch is too large on its diagonal: the noise of a gradient is not
    independent of itself. $A = J_1 J_2^\top$ of two batches is right on average.

    With two further batches, A is theirs, and the weights are spent on the first, as in the papers:
    each task is walked backwards in each of the two, and once the first. With one, A is of the
    first and that one; with none it is the Gram matrix of the first.
    """

    def __init__(self, tasks: Tasks, **options: Unpack[GradientOptions]) -> None:
        super().__init__(tasks, **options)

    @abstractmethod
    def weigh(self, products: Tensor) -> Tensor:
        """Returns the weights `[n]` of the tasks present.

        Args:
            products: A, the inner products of their gradients in one batch, the rows, with those in
                another, `[n, n]`, float64, on the host.
        """

    def weigh_step(self, step: Step, shared: Shared | None) -> Weighed:
        """Returns what the products ask for."""
        shared = listed(shared)  # each batch goes through them
        self._check_others(step, shared)
        gram = None
        if len(step.others) == 2 and self.rescale != "equal-norm":
            spend = self.spend_step(step, shared)  # no task needs a pass of its own
        else:
            sought = self._seek(step, shared, weighted_heads=self.weights_heads)
            take = rows_of if len(step.others) == 1 else products_of
            gradients = take(sought, self.workspace)
            gram = self._gram(gradients)
            spend = self._spend_with(step, gradients)

        if step.others:
            second = self._rows(step.others[-1], shared)
            first = gradients if len(step.others) == 1 else self._rows(step.others[0], shared)
            assert isinstance(first, Rows)
            products = exact_products(first.rows, second.rows)
        else:
            assert gram is not None
            products = gram
        weights = self._rescaled(self.weigh(products), gram).to(step.seen)
        return Weighed(weights, (weights * step.seen).sum(), spend)

    def _check_others(self, step: Step, shared: list[Tensor] | None) -> None:
        if len(step.others) > 2:
            raise ValueError(
                f"{type(self).__name__} samples its gradients twice, and `independent` has "
                f"{len(step.others)} further batches: give two, or one."
            )
        if step.others and are_features(shared):
            raise ValueError(
                f"{type(self).__name__} compares the gradients of different batches, which have no "
                "features in common, and `shared` holds features: give "
                "`shared=encoder.parameters()`."
            )

    def _rows(self, step: Step, shared: Shared | None) -> Rows:
        """Returns the gradients of a further batch, which are finite."""
        sought = self._seek(step, shared, weighted_heads=True)
        gradients = rows_of(sought, self.workspace)
        if not gradients.finite():
            self.refuse_infinite(row_products(gradients.rows, gradients.rows).cpu())
        return gradients


class MoDo(_DoubleSampling):
    r"""Multi-objective gradient descent with double sampling: slow weights, without bias.

    $$A = J_1 J_2^\top, \qquad
    w \leftarrow \Pi_\Delta \big( w - \gamma\, (A w + \rho\, w) \big)$$

    from equal weights: one projected step a call towards the weights of MGDA, on gradients of two
    batches that are independent of each other. Call `strategy(losses, independent=[second, third])`
    with the losses of the same tasks on two further batches: A is of those, and the weights are
    spent on the first. With one further batch A is of the first and that one. Without, A is the
    Gram matrix of the first, and the estimate as biased as that of MGDA.

    Ours: $\gamma$, where implementations differ by a factor of 100 (.001 and .1); absent tasks
    stand still.

    Use it when batches are small and gradients noisy, so that weights computed anew in each step
    would mostly follow the noise. Not when losses change their scale during training: $\gamma$ is
    in one over the square of a gradient's length, so that short gradients leave the weights where
    they are, and long ones throw them from corner to corner.

    Args:
        tasks: The names of the tasks, or their number.
        step_size: $\gamma$.
        rho: $\rho$, which pulls the weights together.
        **options: See `GradientOptions`.

    Attributes:
        shares: $w$, `[T]`.

    Raises:
        ValueError: There are more than two further batches, or further ones and features as
            `shared`.

    Source: Chen, Fernando, Ying & Chen, *Three-way trade-off in multi-objective learning*, NeurIPS
    2023, algorithm 1.
    """

    shares: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        step_size: Positive = 0.001,
        rho: NonNegative = 0.1,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(tasks, **options)
        self.step_size = step_size
        self.rho = rho
        self.register_buffer("shares", self.uniform())

    def weigh(self, products: Tensor) -> Tensor:
        before = self.shares[self.present]
        weights = descended(
            among(self.shares, self.present).cpu().double(), products, self.step_size, self.rho
        )
        self.shares = updated(self.shares, self.present, weights.to(before) * before.sum())
        return weights


class SDMGrad(_DoubleSampling):
    r"""Stochastic direction-oriented descent: MGDA, drawn towards the mean of the gradients.

    $$w = \arg\min_{w \in \Delta} \Big\lVert \sum_i w_i g_i + \lambda g_0 \Big\rVert^2, \qquad
    d = \frac{\sum_i w_i g_i + \lambda g_0}{1 + \lambda}, \qquad g_0 = \frac1T \sum_i g_i$$

    so that the weights of the losses are $(w_i + \lambda / T) / (1 + \lambda)$: MGDA for
    $\lambda = 0$, the mean for large $\lambda$. The lengths are measured by $A = J_1 J_2^\top$ of
    two independent batches: call `strategy(losses, independent=[second, third])` with the losses of
    the same tasks on two further batches; the weights are spent on the first. With one further
    batch A is of the first and that one; without, it is the Gram matrix of the first, and the
    estimate biased.

    Ours: solved exactly, where the published 20 steps of gradient descent jump from corner to
    corner; the symmetric part of A, without its negative eigenvalues, which are noise: a length
    has none.

    Use it when MGDA's caution costs too much progress on the mean loss, and there are batches to
    spare. Not when a step is expensive: each takes three batches. Not when one task's gradients are
    far longer than the others': $g_0$ is theirs.

    Args:
        tasks: The names of the tasks, or their number.
        lambda_: $\lambda$, how much the mean of the gradients counts.
        **options: See `GradientOptions`.

    Raises:
        ValueError: There are more than two further batches, or further ones and features as
            `shared`.

    Source: Xiao, Ban & Ji, *Direction-oriented multi-objective learning: simple and provable
    stochastic algorithms*, NeurIPS 2023, arXiv 2305.18409, algorithm 1; $\lambda$ as in their
    experiments.
    """

    def __init__(
        self,
        tasks: Tasks,
        *,
        lambda_: NonNegative = 0.3,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(tasks, **options)
        self.lambda_ = lambda_

    def weigh(self, products: Tensor) -> Tensor:
        w = directed_min_norm_point(products, self.lambda_)
        return (w + self.lambda_ / len(w)) / (1 + self.lambda_)


def descended(shares: Tensor, products: Tensor, step_size: float, rho: float) -> Tensor:
    """Returns shares `[n]` after one step down the slopes A w + rho w, and back to the simplex."""
    slopes = products @ shares + rho * shares
    # A constant makes no difference to the projection, but large ones to the rounding.
    return simplex_projection(shares - step_size * (slopes - slopes.min()))
