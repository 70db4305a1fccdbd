"""Shares of the data, from the lengths and the noise of the task gradients."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from mtlweight.distributed import world_size
from mtlweight.gradient_strategy import MemoryStrategy
from mtlweight.inputs import Metrics, Step
from mtlweight.loss_strategy import among
from mtlweight.options import Count, GradientOptions, NonNegative, Past, Positive, Tasks
from mtlweight.per_task import per_task, positive
from mtlweight.pieces import in_pieces
from mtlweight.products import squares_fit, widest
from mtlweight.running import Index, filled, updated
from mtlweight.strategy import Weighed
from mtlweight.task_gradients import Parts, Shared


class GradientNoise(MemoryStrategy):
    r"""Tells the gradient of a task from the noise of its batches.

    A single step shows the sum of both, $E \lVert g \rVert^2 = \lVert \nabla L \rVert^2 + \sigma^2
    / b$. But a gradient g and a mean $\bar g$ of those before it are independent, so that

    $$\langle g, \bar g \rangle \quad \text{and} \quad
    \frac{\lVert g - \bar g \rVert^2}{1/b + v}$$

    are $\lVert \nabla L \rVert^2$ and $\sigma^2$ on average, with $\sigma^2$ the variance of the
    gradient of one sample and $v \sigma^2$ that of $\bar g$: exactly, for any numbers of samples b,
    while the network stands still. $\bar g$ leans to the latest gradients, to follow a network that
    moves. Both are recorded at each step from a task's second on. If what the tasks share changes
    in size, the measuring starts anew.

    Given features, whose gradients are those of other samples in each step, there is no $\bar g$:
    $\lVert g \rVert^2$ stands for the first, and $b \lVert g \rVert^2$, the mean square of the
    gradients of the samples, for the second.

    Args:
        tasks: The names of the tasks, or their number.
        smoothing: The share of the past in $\bar g$.
        **options: See `GradientOptions`.

    Attributes:
        averages: $\bar g$, `[T, P]`.
        record: By name, what was told, `[T]` each, float64, on the host: `"seen"`, how many
            gradients $\bar g$ is made of; `"spread"`, v; and since the latest reset, `"steps"`, in
            how many steps the two were told, and their means, `"square"` and `"noise"`.
    """

    growing: ClassVar[tuple[str, ...]] = ("averages",)
    carried: ClassVar[tuple[str, ...]] = (*MemoryStrategy.carried, "record")
    paper_weights_heads: ClassVar[bool] = True
    refuses_infinite: ClassVar[bool] = True
    averages: Tensor

    def __init__(
        self, tasks: Tasks, *, smoothing: Past = 0.9, **options: Unpack[GradientOptions]
    ) -> None:
        super().__init__(tasks, **options)
        self.smoothing = smoothing
        self.counts: Tensor | None = None
        self.register_buffer("averages", torch.zeros(self.num_tasks, 0))
        # Not buffers: in float64, as squares need it, these could not follow to every device.
        self.record: dict[str, Tensor] = {}
        self.forget("seen", "spread", "steps", "square", "noise")

    def weigh_step(self, step: Step, shared: Shared | None) -> Weighed:
        """Returns the weights; notes how many samples are behind each gradient."""
        self.counts = step.counts
        try:
            return super().weigh_step(step, shared)
        finally:
            self.counts = None

    def measure(self, gradients: Tensor) -> Tensor:
        """Records what the gradients `[n, P]` of a step tell.

        Returns:
            The number of samples behind each, over all ranks, `[n]`, float64, on the host.
        """
        here, samples = self._here(), self._samples(len(gradients))
        if gradients.shape[1] != self.averages.shape[1]:
            self.averages = gradients.new_zeros(self.num_tasks, gradients.shape[1])
            self.forget("seen", "spread", "steps", "square", "noise")
        seen, v = self.record["seen"][here], self.record["spread"][here]
        gain = (1 - self.smoothing) / (1 - self.smoothing ** (seen + 1))  # of a mean without bias
        square, distance = self._average(gradients, gain)
        self._note(here, square, distance / (1 / samples + v), (seen > 0).double())
        spread = (1 - gain).square() * v + gain.square() / samples
        self._put(here, seen=seen + 1, spread=spread)
        return samples

    def measure_features(self, gram: Tensor) -> Tensor:
        """Records what the products `[n, n]` of the gradients of features tell.

        Returns:
            As `measure` does.
        """
        square, samples = gram.diagonal(), self._samples(len(gram))
        self._note(self._here(), square, samples * square, torch.ones_like(square))
        return samples

    def _here(self) -> Index:
        every = len(self.index) == self.num_tasks
        return slice(None) if every else torch.tensor(self.index)

    def _samples(self, n: int) -> Tensor:
        """Returns the number of samples behind each gradient, over all ranks, `[n]`."""
        if self.counts is not None:
            return self.counts.double()
        return torch.full((n,), float(world_size()), dtype=torch.float64)

    def _average(self, gradients: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        r"""Moves $\bar g$; returns $\langle g, \bar g \rangle$ and $\lVert g - \bar g \rVert^2$."""
        past = self.averages.to(gradients)
        everywhere = filled(self.num_tasks, self.present, gradients)
        gains = filled(self.num_tasks, self.present, gain.to(gradients)[:, None])
        self.averages = self.workspace.borrow(self.num_tasks, past.shape[1], gradients)
        for dtype in (gradients.dtype, widest(gradients)):
            square, distance = gradients.new_zeros(2, self.num_tasks, dtype=widest(gradients))
            for g, m, mean in in_pieces(everywhere, past, self.averages):
                torch.lerp(m, g, gains, out=mean)
                g, m = g.to(dtype), m.to(dtype)
                square += (product := g * m).sum(1)
                distance += torch.sub(g, m, out=product).square_().sum(1)
            if squares_fit((distance + 2 * square)[self.present], dtype):
                break
        self.refuse_infinite((distance + 2 * square)[self.present])
        return square[self.present].cpu(), distance[self.present].cpu()

    def forget(self, *names: str) -> None:
        """Sets parts of the record to zero."""
        self.record = self.record | {
            name: torch.zeros(self.num_tasks, dtype=torch.float64) for name in names
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Takes back what `get_extra_state` returned."""
        super().set_extra_state(state)
        self.record = {name: values.cpu() for name, values in state["record"].items()}

    def _note(self, here: Index, square: Tensor, noise: Tensor, told: Tensor) -> None:
        old = {name: self.record[name][here] for name in ("steps", "square", "noise")}
        steps = old["steps"] + told
        share = told / steps.clamp_min(1)
        self._put(
            here,
            steps=steps,
            square=old["square"] + share * (square - old["square"]),
            noise=old["noise"] + share * (noise - old["noise"]),
        )

    def _put(self, here: Index, **values: Tensor) -> None:
        changed = {name: updated(self.record[name], here, new) for name, new in values.items()}
        self.record = self.record | changed


class PiKE(GradientNoise):
    r"""Data mixing by descent: favours the tasks whose gradient is long and little noisy.

    $$w_i \leftarrow w_i \exp\Big(\zeta_1 \lVert \nabla L_i \rVert^2 - \frac{\zeta_2}{2b}
    \sigma_i^2 \Big), \qquad w \leftarrow w / \sum_j w_j$$

    every $T_0$ steps, from uniform w, by the means of both since the last change; see
    `GradientNoise` for how they are told apart. `weights` after `end_epoch` are the latest w.

    The rule reached us without the authors' estimates and constants, so these are ours: how
    $\lVert \nabla L_i \rVert^2$ and $\sigma_i^2$ are measured; b, the mean number of samples of a
    task in a step; $\zeta$, which count per `unit` of squared gradient, by default the mean of
    $\lVert \nabla L_i \rVert^2 + \sigma_i^2 / b$ over the tasks, so that they need no tuning to the
    size of the gradients (`unit=1.0` is the paper's rule as it stands); and no w below $e^{-10}$ of
    the largest. Tasks not measured since the last change keep their w. Given features, the noise is
    not known, and lengths count alone. Keeps T gradients in memory, also in `state_dict()`.

    Use it when tasks hardly conflict and the data should go where a step gains most. Not when
    every task must be learned: nothing in the rule lifts a task with a short gradient. Not when
    losses have different units, which the squares of gradients take over.

    Args:
        tasks: The names of the tasks, or their number.
        zeta1: $\zeta_1$, the pull of long gradients.
        zeta2: $\zeta_2$, the push of noise.
        every: $T_0$, the number of steps from one change of w to the next.
        unit: The squared length that $\zeta$ are per; None for the mean of the tasks.
        smoothing: The share of the past in the mean gradients that noise is told by.
        **options: See `GradientOptions`.

    Attributes:
        shares: w, `[T]`.

    Source: Li, Deng, Zhong, Razaviyayn & Mirrokni, *PiKE: adaptive data mixing for large-scale
    multi-task learning under low gradient conflicts*, NeurIPS 2025, arXiv 2502.06244.
    """

    shares: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        zeta1: NonNegative = 0.1,
        zeta2: NonNegative = 0.1,
        every: Count = 10,
        unit: Positive | None = None,
        smoothing: Past = 0.9,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(tasks, smoothing=smoothing, **options)
        self.zeta1 = zeta1
        self.zeta2 = zeta2
        self.every = every
        self.unit = unit
        self.register_buffer("shares", self.uniform())

    def combine(self, gradients: Tensor, losses: Tensor) -> tuple[Tensor, Tensor | Parts]:
        weights = self._weights_after(self.measure(gradients), noisy=True).to(losses)
        return weights, Parts(weights, gradients)

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        return self._weights_after(self.measure_features(gram), noisy=False).to(losses)

    def close_epoch(self, metrics: Metrics | None) -> None:
        """Takes the latest shares."""
        self.weights = self.shares.clone()

    def _weights_after(self, samples: Tensor, *, noisy: bool) -> Tensor:
        """Returns the weights after a step with some samples, `[n]`, which may change them."""
        if (self.step + 1) % self.every == 0:
            self._change_shares(float(samples.mean()), noisy=noisy)
        return among(self.shares, self.present)

    def _change_shares(self, b: float, *, noisy: bool) -> None:
        told = self.record["steps"] > 0
        squares = self.record["square"][told].clamp_min(0)
        noises = self.record["noise"][told] / b * noisy
        self.forget("steps", "square", "noise")
        if not told.any():
            return
        unit = self.unit or float((squares + noises).mean())
        if unit == 0:
            return
        shares = self.shares.double().cpu()
        old = shares[told]
        exponents = (self.zeta1 * squares - self.zeta2 / 2 * noises) / unit
        new = (old.log() + exponents).softmax(0)
        new = new.clamp_min(math.exp(-10) * new.max())
        shares[told] = old.sum() * new / new.sum()
        self.shares = shares.to(self.shares)


class VarianceAware(GradientNoise):
    r"""Variance-aware sampling: the shares of data that make the gradient least noisy.

    $$q_i \propto w_i \sigma_i$$

    with w what the tasks are worth, given, and $\sigma_i$ the standard deviation of the gradient of
    one sample of task i. N samples drawn by q and weighted by $w_i / q_i$ have the gradient of
    $\sum_i w_i L_i$ on average, with the variance $\sum_i w_i^2 \sigma_i^2 / (N q_i)$; that is
    least at this q, where it is $(\sum_i w_i \sigma_i)^2 / N$ (Neyman's allocation: the deviation
    counts, not the variance). So give q to the data and `split(w, q=strategy.weights)` to the
    losses; q on the losses themselves, or on the data alone, is another aim than w.

    q is constant within an epoch, and changes at its end by the mean of $\sigma_i^2$ in it; see
    `GradientNoise` for how that is measured (ours). It is w until then. A task not measured in an
    epoch goes on with its last $\sigma_i$, or before its first with the mean of the others (ours).
    No $\sigma_i$ counts for less than 1 % of their mean, so that every task stays measured (ours).
    Keeps T gradients in memory, also in `state_dict()`.

    Use it when the aim w is settled, samples are dear, and some tasks are much noisier than others.
    Not when tasks should gain or lose importance: it moves noise, never the target.

    Args:
        tasks: The names of the tasks, or their number.
        weights: w, what the tasks are worth, positive, of any scale; None for equal.
        smoothing: The share of the past in the mean gradients that noise is told by.
        **options: See `GradientOptions`.

    Attributes:
        shares: q, `[T]`.
        targets: w, `[T]`.
        record: Also `"deviation"`, $\sigma$ in the latest epoch that told; NaN before.

    Raises:
        OptionError: A weight is missing or not positive.

    Source: Salmani, Worah, Razaviyayn & Mirrokni, *Sampling and loss weights in multi-domain
    training*, arXiv 2511.06913, whose rule reached us through reading notes; Neyman, *On the two
    different aspects of the representative method*, 1934.
    """

    shares: Tensor
    targets: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        weights: Metrics | None = None,
        smoothing: Past = 0.9,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(tasks, smoothing=smoothing, **options)
        given = dict.fromkeys(self.tasks, 1.0) if weights is None else weights
        must = "be positive, since a task worth nothing has no share of the data"
        targets = per_task(self.tasks, given, "weights", positive, must)
        w = torch.tensor(list(targets.values()), dtype=torch.float64)
        self.register_buffer("targets", (w / w.sum()).to(self.weights))
        self.register_buffer("shares", self.targets.clone())
        self.record["deviation"] = torch.full((self.num_tasks,), torch.nan, dtype=torch.float64)
        self.weights = self.targets.clone()

    def combine(self, gradients: Tensor, losses: Tensor) -> tuple[Tensor, Tensor | Parts]:
        self.measure(gradients)
        weights = among(self.shares, self.present).to(losses)
        return weights, Parts(weights, gradients)

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        self.measure_features(gram)
        return among(self.shares, self.present).to(losses)

    def close_epoch(self, metrics: Metrics | None) -> None:
        """Shares the next epoch by the noise of this one."""
        told = self.record["steps"] > 0
        sigma = torch.where(told, self.record["noise"].sqrt(), self.record["deviation"])
        self.record = self.record | {"deviation": sigma}
        self.forget("steps", "square", "noise")
        mean = sigma.nanmean()
        if mean > 0:
            q = self.targets.cpu() * torch.where(sigma.isnan(), mean, sigma).clamp_min(mean / 100)
            self.shares = (q / q.sum()).to(self.shares)
        self.weights = self.shares.clone()
