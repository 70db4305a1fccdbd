"""The bases of strategies that read losses, or validation metrics."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from mtlweight.inputs import Metrics, Step, read_metrics
from mtlweight.options import Options, Past, Tasks
from mtlweight.running import Index
from mtlweight.strategy import Strategy, Weighed
from mtlweight.task_gradients import Shared, products_of


class LossStrategy(Strategy):
    """A strategy that reads losses: it is written as the scalar that its paper minimises.

    The weights are the derivative of that scalar, taken by autograd.
    """

    @property
    def waits(self) -> bool:
        """Not but for `rescale="equal-norm"`, which takes gradients."""
        return self.rescale == "equal-norm"

    @property
    def in_graph(self) -> bool:
        """A compiled training step is not broken, unless the strategy asks for gradients."""
        learns = any(parameter.requires_grad for parameter in self.parameters())
        return self.rescale != "equal-norm" and not learns

    @abstractmethod
    def scalarize(self, losses: Tensor) -> Tensor:
        """Returns the scalar to minimise.

        Args:
            losses: The losses of the tasks present, `[n]`; `self.present` tells which they are.
        """

    def weigh_step(self, step: Step, shared: Shared | None) -> Weighed:
        """Returns the derivative of the scalar, and its value."""
        weights, value = self.derivative(step.seen)
        if self.rescale != "none":
            gram = None
            if self.rescale == "equal-norm":
                sought = self._seek(step, shared, weighted_heads=True)
                gram = self._gram(products_of(sought, self.workspace))
            weights, value = self._rescaled(weights, gram), None
        scalar = step.attach(value, weights)
        return Weighed(weights, scalar.detach() if value is None else value, step.attach, scalar)

    def derivative(self, losses: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the derivative of the scalar by the losses `[n]`, and its value.

        The value is None where it is the sum of the losses by their weights.
        """
        leaf = losses.clone().requires_grad_()
        scalar = self.scalarize(leaf)
        learns = any(parameter.requires_grad for parameter in self.parameters())
        (weights,) = torch.autograd.grad(scalar, leaf, retain_graph=learns)
        return weights, scalar if learns else scalar.detach()


class LossWeighting(LossStrategy):
    """A strategy that reads losses: it is written as the weights that it gives them."""

    @abstractmethod
    def weights_of(self, losses: Tensor) -> Tensor:
        """Returns the weights of the tasks present, `[n]`, constants of the scalar.

        Args:
            losses: Their losses, detached, `[n]`; `self.present` tells which they are.
        """

    def scalarize(self, losses: Tensor) -> Tensor:
        """Returns the sum of the losses by their weights."""
        return (self.weights_of(losses.detach()).to(losses) * losses).sum()

    def derivative(self, losses: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the weights, which autograd need not be asked for."""
        return self.weights_of(losses).to(losses), None


class MetricStrategy(LossWeighting):
    """A strategy that reads validation metrics: its weights are constant from epoch to epoch.

    They are uniform until the first `end_epoch(metrics)`. A task that a mapping of metrics leaves
    out goes on with its previous metric.

    Args:
        tasks: The names of the tasks, or their number.
        smoothing: The share of the past in the smoothed metrics; the first are taken as they are.
        **options: See `Options`.
    """

    carried: ClassVar[tuple[str, ...]] = (*LossWeighting.carried, "metrics")
    shares: Tensor

    def __init__(self, tasks: Tasks, *, smoothing: Past = 0.0, **options: Unpack[Options]) -> None:
        super().__init__(tasks, **options)
        self.smoothing = smoothing
        self.metrics: dict[str, float] = {}
        self.register_buffer("shares", self.initial_shares())
        self.weights = self.shares.clone()

    @abstractmethod
    def weigh(self, metrics: Tensor) -> Tensor:
        """Returns the weights `[T]` that the smoothed metrics `[T]` (float64) ask for."""

    def initial_shares(self) -> Tensor:
        """Returns the weights before the first metrics, `[T]`."""
        return self.uniform()

    def refuse_metric(self, task: str, metric: float) -> str | None:
        """Returns why a metric is out of range, or None."""
        return None

    def weights_of(self, losses: Tensor) -> Tensor:
        """Returns the shares of the tasks present."""
        return among(self.shares, self.present)

    def close_epoch(self, metrics: Metrics | None) -> None:
        """Weighs the tasks by their metrics."""
        if metrics is None:
            raise ValueError(
                f"{type(self).__name__} weighs tasks by their validation metrics: call "
                "end_epoch(metrics) with one for each task."
            )
        new = read_metrics(self.tasks, metrics)
        for task, metric in new.items():
            if reason := self.refuse_metric(task, metric):
                raise ValueError(f"The metric of task {task!r} is {metric!r}: {reason}.")
        if missing := [task for task in self.tasks if task not in new | self.metrics]:
            raise ValueError(
                f"{type(self).__name__} has no metric of task {missing[0]!r} yet: the first "
                "metrics must be those of all tasks."
            )
        past = self.smoothing
        self.metrics = {
            task: (
                past * self.metrics[task] + (1 - past) * new[task]
                if task in new and task in self.metrics
                else new.get(task, self.metrics.get(task, 0.0))
            )
            for task in self.tasks
        }
        smoothed = torch.tensor(list(self.metrics.values()), dtype=torch.float64)
        self.shares = self.weigh(smoothed).to(self.shares)
        self.weights = self.shares.clone()  # a load writes into each: they must not be one tensor


def among(shares: Tensor, present: Index) -> Tensor:
    """Returns the shares of the tasks present, which then sum to what those of all did, `[n]`."""
    if isinstance(present, slice):
        return shares
    here = shares[present]
    total = here.sum()
    return torch.where(total > 0, here * (shares.sum() / total), shares.sum() / len(here))
