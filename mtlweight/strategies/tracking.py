"""Combining gradients that are tracked over the steps, to be less noisy than those of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Unpack

import torch
from pydantic import Field
from torch import Tensor

from mtlweight.gradient_strategy import MemoryStrategy
from mtlweight.loss_strategy import among
from mtlweight.options import GradientOptions, NonNegative, Past, Positive, Tasks
from mtlweight.products import gram_of, rounding_of, without_rounding
from mtlweight.running import updated, widened
from mtlweight.strategies.config import equal_cosines
from mtlweight.strategies.double_sampling import descended
from mtlweight.task_gradients import Parts

Present = Annotated[float, Field(gt=0, le=1)]


class MoCo(MemoryStrategy):
    r"""Multi-objective gradients with correction: slow weights on tracked gradients.

    $$y_i \leftarrow y_i - \beta_k (y_i - g_i), \qquad
    \lambda \leftarrow \Pi_\Delta \big( \lambda - \gamma_k (Y Y^\top + \rho I) \lambda \big), \qquad
    d = \sum_i \lambda_i y_i$$

    with $y = 0$ and $\lambda$ equal at the start, $\beta_k = \beta / k^{\sigma_\beta}$ and
    $\gamma_k = \gamma / k^{\sigma_\gamma}$ in step k. One projected step a call towards the weights
    of MGDA. The gradients $g_i$ are the tasks' own, and $\Pi_\Delta$ the projection on the simplex,
    as in the paper; a published implementation takes $g_i L_i / \lVert g_i \rVert$ and a softmax,
    which is nearly uniform for ever. The weights reported are those of the present gradients in d,
    $\beta_k \lambda_i$.

    Ours: no ball that $y_i$ is kept in, since an average is never longer than the longest gradient;
    the values of $\beta$, $\gamma$ and their decay, which the paper tunes. Given features, which
    are of other samples in each step, it goes by the gradients of the step alone. Keeps T gradients
    in memory, also in `state_dict()`.

    Use it when batches are small and the gradients of a batch say little about the direction of
    their mean. Not when losses change their scale during training: $\gamma$ is in one over the
    square of a gradient's length. Not when memory is short.

    Args:
        tasks: The names of the tasks, or their number.
        beta: $\beta$, the share of the present in the tracked gradients, at most one.
        beta_sigma: $\sigma_\beta$.
        step_size: $\gamma$.
        step_sigma: $\sigma_\gamma$.
        rho: $\rho$, which pulls the weights together.
        **options: See `GradientOptions`.

    Attributes:
        tracked: Y, `[T, P]`.
        shares: $\lambda$, `[T]`.

    Raises:
        ValueError: What the tasks share has become less; what is added to it begins at zero.

    Source: Fernando et al., *Mitigating gradient bias in multi-objective learning: a provably
    convergent approach*, ICLR 2023, algorithm 1.
    """

    growing: ClassVar[tuple[str, ...]] = ("tracked",)
    refuses_infinite: ClassVar[bool] = True
    tracked: Tensor
    shares: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        beta: Present = 0.5,
        beta_sigma: NonNegative = 0.5,
        step_size: Positive = 0.1,
        step_sigma: NonNegative = 0.5,
        rho: NonNegative = 0.0,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(tasks, **options)
        self.beta = beta
        self.beta_sigma = beta_sigma
        self.step_size = step_size
        self.step_sigma = step_sigma
        self.rho = rho
        self.register_buffer("tracked", torch.zeros(self.num_tasks, 0))
        self.register_buffer("shares", self.uniform())

    def combine(self, gradients: Tensor, losses: Tensor) -> tuple[Tensor, Tensor | Parts]:
        if not gradients.shape[1]:  # nothing is known to be shared, and all leaves are heads
            return among(self.shares, self.present).to(losses), gradients.sum(0)
        beta = self.beta / (self.step + 1) ** self.beta_sigma
        past = widened(self.tracked, gradients)
        tracked = gradients.lerp_(past[self.present], 1 - beta)
        self.tracked = updated(past, self.present, tracked)
        gram = gram_of(tracked)
        self.refuse_infinite(gram.diagonal())
        weights = self.weigh(without_rounding(gram), losses).to(losses)
        return beta * weights, Parts(weights, tracked)

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        shares = among(self.shares, self.present)
        rate = self.step_size / (self.step + 1) ** self.step_sigma
        new = descended(shares.cpu().double(), gram, rate, self.rho)
        here = self.shares[self.present]
        self.shares = updated(self.shares, self.present, new.to(here) * here.sum())
        return new


class MConFIG(MemoryStrategy):
    r"""Momentum ConFIG: the conflict-free direction, for one backward pass of a task a step.

    $$m_i \leftarrow \beta_1 m_i + (1-\beta_1)\, g_i, \qquad
    \hat m_i = \frac{m_i}{1 - \beta_1^{t_i}}, \qquad
    m = \operatorname{ConFIG}(\hat m_1, \dots, \hat m_T)$$

    where only one task is refreshed in each step, in turn, for the $t_i$-th time. The length of the
    step is that of Adam, whose second moment needs the gradient that would have led to m, in the
    t-th such step:

    $$\tilde g = \frac{(1-\beta_1^t)\, m^{(t)} - \beta_1 (1-\beta_1^{t-1})\, m^{(t-1)}}{1-\beta_1},
    \qquad v \leftarrow \beta_2 v + (1-\beta_2)\, \tilde g^2, \qquad
    d = \frac{m}{\sqrt{v / (1-\beta_2^t)} + \epsilon}$$

    Zero until each task present had its turn. Use an optimizer that takes d as it is: SGD, with the
    learning rate of Adam. Heads get their plain gradients, in each step; give what should be
    stepped alike as `shared=model.parameters()`. The weights reported are those of the $\hat m_i$
    in m.

    Ours: $\epsilon$ is $10^{-8}$ of the largest root of v; the turn goes to the task present that
    waited longest. Given features, which are of other samples in each step, it is ConFIG on the
    gradients of the step. Keeps T + 2 gradients in memory, also in `state_dict()`.

    Use it when there are many tasks, and T backward passes a step are too many, as in
    physics-informed networks. Not when gradients turn quickly: each is T steps old on average,
    and the average over some ten of its own turns.

    Args:
        tasks: The names of the tasks, or their number.
        beta1: $\beta_1$.
        beta2: $\beta_2$.
        **options: See `GradientOptions`.

    Attributes:
        averages: $m_i$, `[T, P]`.
        turns: $t_i$, `[T]`.
        latest: The step of each task's latest turn, -1 before the first, `[T]`.
        direction: $(1-\beta_1^t)\, m$, `[P]`.
        roots: $\sqrt v$, `[P]`.

    Raises:
        ValueError: What the tasks share has become less; what is added to it begins at zero.

    Source: Liu, Chu & Thuerey, *ConFIG: towards conflict-free training of physics informed neural
    networks*, ICLR 2025, arXiv 2408.11104, algorithm 1.
    """

    growing: ClassVar[tuple[str, ...]] = ("averages", "direction", "roots")
    carried: ClassVar[tuple[str, ...]] = (*MemoryStrategy.carried, "moves")
    epsilon = 1e-8
    averages: Tensor
    turns: Tensor
    latest: Tensor
    direction: Tensor
    roots: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        beta1: Past = 0.9,
        beta2: Past = 0.999,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(tasks, **options)
        self.beta1 = beta1
        self.beta2 = beta2
        self.moves = 0
        self.register_buffer("averages", torch.zeros(self.num_tasks, 0))
        self.register_buffer("turns", torch.zeros(self.num_tasks))
        self.register_buffer("latest", torch.full((self.num_tasks,), -1))
        self.register_buffer("direction", torch.zeros(0))
        self.register_buffer("roots", torch.zeros(0))

    def tasks_read(self, count: int) -> Sequence[int]:
        """Returns whose turn it is, or all where there is no past, or lengths are compared."""
        return range(count) if self.rescale == "equal-norm" else [self._turn()]

    def combine(self, gradients: Tensor, losses: Tensor) -> tuple[Tensor, Tensor | Parts]:
        if not gradients.shape[1]:  # nothing is known to be shared, and all leaves are heads
            return torch.ones_like(losses), gradients.sum(0)
        self._refresh(gradients)
        turns = self.turns[self.present]
        if not bool((turns > 0).all()):
            return torch.zeros_like(losses), torch.zeros_like(gradients[0])
        averages = self.averages[self.present]
        unbias = 1 / (1 - self.beta1 ** turns.cpu().double())
        gram = without_rounding(gram_of(averages)) * unbias * unbias[:, None]
        weights = _config(gram, rounding_of(averages.dtype))
        direction = (weights * unbias).to(averages) @ averages
        return weights.to(losses), self._step_along(direction)

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        return _config(gram, self.rounding)

    def _turn(self) -> int:
        """Returns the place of the task whose turn it is among those present."""
        return int(self.latest[self.present].argmin())

    def _refresh(self, gradients: Tensor) -> None:
        """Takes the gradient of the task whose turn it is into its average."""
        turn = self._turn()
        task = self.index[turn]
        past = widened(self.averages, gradients)
        averages = self.workspace.borrow(self.num_tasks, past.shape[1], past).copy_(past)
        averages[task] = torch.lerp(gradients[turn], averages[task], self.beta1)
        self.averages = averages
        here = torch.arange(self.num_tasks, device=self.turns.device) == task
        self.turns = self.turns + here
        self.latest = torch.where(here, self.step, self.latest)

    def _step_along(self, direction: Tensor) -> Tensor:
        """Returns the direction m `[P]` over its second moment, which it goes into."""
        self.moves += 1
        biased = (1 - self.beta1**self.moves) * direction
        last = widened(self.direction, direction)
        gradient = (biased - self.beta1 * last) / (1 - self.beta1)
        # The root of the second moment, since squares leave the range of float32.
        past = self.beta2**0.5 * widened(self.roots, direction)
        self.roots = torch.hypot(past, (1 - self.beta2) ** 0.5 * gradient)
        self.direction = biased
        scale = self.roots / (1 - self.beta2**self.moves) ** 0.5
        return torch.where(scale > 0, direction / (scale + self.epsilon * scale.max()), 0.0)


def _config(gram: Tensor, rounding: float) -> Tensor:
    """Returns the weights of the conflict-free direction as long as the gradients along it.

    As `ConFIG` weighs gradients of that precision.
    """
    norms = gram.diagonal().sqrt()
    if not bool((norms > 0).any()):
        return torch.zeros_like(norms)
    found = equal_cosines(gram.numpy(), rounding)
    q, cosines = (torch.from_numpy(array) for array in found)
    square = q @ cosines  # the squared length of the sum of the q_i u_i
    scale = norms @ cosines / square if bool(square > 0) else norms.mean()
    return torch.where(norms > 0, scale * q / norms, 0.0)
