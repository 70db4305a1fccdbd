"""Weights that are agreed on: Nash's bargain between the tasks, and its fair relatives."""

from __future__ import annotations

from typing import Annotated, ClassVar, Unpack

from pydantic import Field
from torch import Tensor

from mtlweight.gradient_strategy import GramStrategy
from mtlweight.options import GramOptions, Positive, Tasks
from mtlweight.solvers import alpha_fair_weights

Fairness = Annotated[float, Field(ge=0.1, le=10)]


class FairGrad(GramStrategy):
    r"""Fair resource allocation: shares out the progress of a step $\alpha$-fairly.

    $$(G w)_i = \langle g_i, d \rangle = w_i^{-1/\alpha}, \qquad d = \sum_i w_i g_i$$

    with G the inner products of the task gradients: the d of a ball that maximises
    $\sum_i \langle g_i, d \rangle^{1-\alpha} / (1-\alpha)$. $\alpha = 1$ is `NashMTL`;
    $\alpha \to 0$ is the sum of the losses, and $\alpha \to \infty$ serves only the task that
    progresses least. All $\langle g_i, d \rangle$ are positive: no task is hurt. A d longer than
    `max_norm` is shortened to it. Solved to 1e-10.

    Opposed gradients, or any with the origin in their hull, have no finite solution: the length of
    $(w_i \lVert g_i \rVert)_i$ is bounded, by what two gradients of one length reach at a cosine of
    $-1 + 10^{-6}$; beyond, what is opposed cancels, and a task may be hurt a little (ours; see
    `alpha_fair_weights`). A task without gradient has no say, and gets the mean weight of the
    others (ours).

    Use it when no task may be left behind and $\alpha$ is worth tuning: the larger, the more goes
    to the tasks that progress least. Not when losses differ in scale by orders of magnitude, which
    shifts what is fair unless $\alpha = 1$, or where the length of the step should tell how far
    there is to go: it is `max_norm` nearly always.

    Args:
        tasks: The names of the tasks, or their number.
        alpha: $\alpha$, from 0.1 to 10.
        max_norm: The longest that $d$ may be; None for any length.
        **options: See `GramOptions`.

    Source: Ban & Ji, *Fair resource allocation in multi-task learning*, ICML 2024, arXiv
    2402.15638, equation 4. $\alpha$ and `max_norm` as in the authors' scripts, which also multiply
    d by T.
    """

    def __init__(
        self,
        tasks: Tasks,
        *,
        alpha: Fairness = 2.0,
        max_norm: Positive | None = 1.0,
        **options: Unpack[GramOptions],
    ) -> None:
        super().__init__(tasks, **options)
        self.alpha = alpha
        self.max_norm = max_norm

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        return shortened(alpha_fair_weights(gram, self.alpha), gram, self.max_norm)


class NashMTL(GramStrategy):
    r"""Multi-task learning as a bargaining game: Nash's bargain between the tasks.

    $$w_i\, \langle g_i, d \rangle = 1 \quad \text{for all i}, \qquad d = \sum_i w_i g_i$$

    which maximises the product of the $\langle g_i, d \rangle$ in a ball. d has the length
    $\sqrt{T}$ whatever the gradients are, and multiplying a loss by a number does not change it;
    being longer than `max_norm`, it is shortened to that. All $\langle g_i, d \rangle$ are
    positive: no task is hurt. Solved to 1e-10 in each step; `Every` does it every few steps.

    Opposed gradients, or any with the origin in their hull, have no finite solution: the length of
    $(w_i \lVert g_i \rVert)_i$ is bounded by $1000 \sqrt T$, which two gradients reach at a cosine
    of $-1 + 10^{-6}$; beyond, what is opposed cancels, and a task may be hurt a little (ours; see
    `alpha_fair_weights`). A task without gradient has no say, and gets the mean weight of the
    others (ours). The weights multiply whole losses, heads included, as in the authors' code.

    Use it when tasks differ in scale and none may be hurt. Not when heads suffer from weights that
    are the inverse of a gradient's length, and so shrink where gradients are long: use
    `heads="plain"`. And lower the learning rate in time: the step does not get shorter as training
    converges.

    Args:
        tasks: The names of the tasks, or their number.
        max_norm: The longest that $d$ may be; None for any length.
        **options: See `GramOptions`.

    Source: Navon et al., *Multi-task learning as a bargaining game*, ICML 2022, arXiv 2202.01017,
    equation 2. `max_norm` as in the authors' code.
    """

    paper_weights_heads: ClassVar[bool] = True

    def __init__(
        self, tasks: Tasks, *, max_norm: Positive | None = 1.0, **options: Unpack[GramOptions]
    ) -> None:
        super().__init__(tasks, **options)
        self.max_norm = max_norm

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        return shortened(alpha_fair_weights(gram, 1.0), gram, self.max_norm)


def shortened(weights: Tensor, gram: Tensor, max_norm: float | None) -> Tensor:
    """Returns weights `[n]` whose gradient is no longer than `max_norm`.

    And none above 1e38, the most that single precision holds.
    """
    if max_norm is not None:
        length = (weights @ gram @ weights).clamp_min(0).sqrt()
        weights = weights * (max_norm / length.clamp_min(max_norm))
    return weights.clamp_max(1e38)
