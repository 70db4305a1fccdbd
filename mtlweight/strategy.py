"""The interface of every weighting strategy."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtlweight.compiled import handle_of, weigh
from mtlweight.distributed import average_over_ranks
from mtlweight.inputs import (
    LARGEST_LOSS,
    Losses,
    Metrics,
    Step,
    describe_bad_loss,
    read_counts,
    read_losses,
)
from mtlweight.late_errors import LateErrors
from mtlweight.options import Check, Rescale, Tasks, checked, task_names
from mtlweight.running import Index, RunningMean, filled, sent
from mtlweight.state import Stateful
from mtlweight.task_gradients import Shared, Sought, TaskGradients, seek
from mtlweight.task_gradients.shared_leaves import SharedLeaves
from mtlweight.task_gradients.workspace import Workspace


@dataclass(frozen=True)
class Weighed:
    """The weights of a step, before they are spent on its losses.

    Attributes:
        weights: Those of the n tasks present on any rank, `[n]`.
        value: What the scalar is worth at these weights.
        spend: Makes the scalar from what it is worth and the weights of the losses.
        scalar: The scalar at these weights, if it is made already.
    """

    weights: Tensor
    value: Tensor
    spend: Callable[[Tensor, Tensor], Tensor]
    scalar: Tensor | None = None

    def total(self) -> Tensor:
        """Returns the scalar whose gradient is the strategy's."""
        return self.spend(self.value, self.weights) if self.scalar is None else self.scalar


class Strategy(Stateful, ABC):
    """Turns the losses of T tasks into the one scalar to call `backward` on.

    A strategy is a loss module whose input is losses. Call it once per step, and `end_epoch` once
    per epoch: a pass over the data, or the steps between two validations. Autocast, gradient
    scaling, accumulation, `backward` and the optimizer stay in the training loop. What a strategy
    does not read it ignores, so the same loop runs them all. In `eval()` it draws and records
    nothing, and returns the losses weighted as on average in this epoch.

    Args:
        tasks: The names of the tasks, or their number.
        rescale: See `Options`.
        check: See `Options`.

    Attributes:
        tasks: The names of the T tasks.
        weights: The weight of each task's loss in the gradient of the latest call, zero for tasks
            absent from it; after `end_epoch` what the next epoch should be spent by, which for
            weights that change every step is their mean over the epoch. `[T]`, float32.
        present: During a call, the tasks present: an index into what is kept per task.
        index: The same tasks as numbers.
    """

    undone: ClassVar[tuple[str, ...]] = ("shared_leaves",)
    weights: Tensor

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = checked(cls.__init__)  # type: ignore[method-assign]

    @checked
    def __init__(self, tasks: Tasks, *, rescale: Rescale = "none", check: Check = "auto") -> None:
        super().__init__()
        self.tasks = task_names(tasks)
        self.rescale = rescale
        self.check = check
        self.present: Index = slice(None)
        self.index = list(range(len(self.tasks)))
        self.shared_leaves = SharedLeaves(sole_task=len(self.tasks) == 1)
        self.workspace = Workspace()
        self.late_errors = LateErrors()
        self.epoch_weights = RunningMean(len(self.tasks))
        self.register_buffer("weights", self.uniform())
        self.handle = handle_of(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.handle = handle_of(self)  # a copy is another strategy

    @property
    def num_tasks(self) -> int:
        """The number of tasks, T."""
        return len(self.tasks)

    @property
    def named_weights(self) -> dict[str, float]:
        """The weights by task name; waits for the device."""
        return dict(zip(self.tasks, self.weights.tolist(), strict=True))

    @property
    def waits(self) -> bool:
        """Whether each step waits for the device anyway."""
        return False

    @property
    def nonnegative_losses(self) -> bool:
        """Whether a negative loss has no meaning to the strategy, and is refused."""
        return False

    def uniform(self) -> Tensor:
        """Returns equal weights that sum to one, `[T]`."""
        return torch.full((len(self.tasks),), 1 / len(self.tasks))

    def generator(self) -> torch.Generator:
        """Returns the random numbers of this step: the same on every rank, and after a resume."""
        seed = int(getattr(self, "seed", 0))
        return torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + self.step) % (1 << 63))

    def forward(
        self,
        losses: Losses,
        shared: Shared | None = None,
        *,
        counts: Mapping[str, int] | None = None,
        independent: Sequence[Losses] = (),
    ) -> Tensor:
        """Returns the scalar whose gradient is the strategy's.

        It is worth what the paper minimises where it minimises something, otherwise the weighted
        sum of the losses; with a `rescale` always the latter.

        Args:
            losses: The losses of this step: a mapping from task name, which leaves out tasks absent
                from the batch, or a sequence or tensor `[T]` in the order of `tasks`.
            shared: What the tasks share: parameters, or features that the network returned. Only
                strategies that read gradients read it; by default they find it in the graph.
            counts: The number of samples behind each loss, where ranks hold unequal numbers.
            independent: The losses of the same tasks on further batches, drawn independently, for
                the strategies that sample their gradients twice.

        Raises:
            ValueError: A loss is not finite, too large, negative where its logarithm is taken,
                detached, not a scalar, on another device, unknown or missing.
            TypeError: A loss is not a floating point tensor.
            RuntimeError: Autograd is off in training, or the graph of a loss was freed.
        """
        if torch.compiler.is_compiling():
            if self.in_graph and counts is None:
                return self._in_graph(losses)
            apart = torch.compiler.disable(self._forward)  # type: ignore[no-untyped-call]
            return apart(losses, shared, counts, independent)  # type: ignore[no-any-return]
        return self._forward(losses, shared, counts, independent)

    def _forward(
        self,
        losses: Losses,
        shared: Shared | None,
        counts: Mapping[str, int] | None,
        independent: Sequence[Losses],
    ) -> Tensor:
        step = read_losses(self.tasks, losses, training=self.training)
        numbers = None if counts is None else read_counts(self.tasks, step, counts)
        if not self.training:
            return self._evaluated(step.values, step.index)
        others = tuple(read_losses(self.tasks, more, training=True) for more in independent)
        return self._stepped(step, shared, numbers, others)

    def _evaluated(self, values: Tensor, index: list[int]) -> Tensor:
        """Returns the sum of the losses by the weights of this epoch."""
        self._follow(values.device)
        weights = self.epoch_weights.mean(default=self.weights)
        if len(index) < self.num_tasks:
            weights = weights[sent(torch.tensor(index), values)]
        return (weights * values).sum()

    def _stepped(
        self,
        step: Step,
        shared: Shared | None,
        counts: list[float] | None = None,
        others: tuple[Step, ...] = (),
    ) -> Tensor:
        """Takes a step, all of it, or nothing if it is refused; returns the scalar."""
        self._follow(step.values.device)
        self._raise_late(self.late_errors.raise_ready)
        with self.undone_if_refused(), _no_autocast(step.values.device):
            step = average_over_ranks(self.num_tasks, step, counts)
            good = self._check_values(step)
            if others:
                step = replace(step, others=self._average_others(others, step))
            before = None if good is None else self.buffers_now()
            total = self.advance(step, shared).total()
            if good is not None and before is not None:
                self.keep_if(good, before)
        return total

    @property
    def in_graph(self) -> bool:
        """Whether a compiled training step takes the strategy in without a break of its graph."""
        return False

    def _in_graph(self, losses: Losses) -> Tensor:
        """Returns the scalar, from one opaque operation."""
        step = read_losses(self.tasks, losses, training=False)
        value, slopes = weigh(step.values.detach(), self.handle, step.index)
        total = torch.dot(slopes, step.values)
        scalar: Tensor = value + (total - total.detach())
        return scalar

    def weigh_values(self, values: Tensor, index: list[int]) -> tuple[Tensor, Tensor]:
        """Takes a step on detached losses `[m]`: what the scalar is worth, and its slopes `[m]`."""
        leaf = values.clone().requires_grad_()
        with torch.enable_grad():
            if self.training:
                step = Step(index, values, slice(None), leaf, [])
                total = self._stepped(step, None)
            else:
                total = self._evaluated(leaf, index)
            (slopes,) = torch.autograd.grad(total, leaf)
        return total.detach(), slopes

    def advance(self, step: Step, shared: Shared | None) -> Weighed:
        """Takes one step on losses that are good: weighs them, and records their weights.

        For wrappers, which call it on the strategy within, and may change its weights.
        """
        if len(step.index) < self.num_tasks:
            self.present = sent(torch.tensor(step.index), step.seen)
            self.index = step.index
        try:
            weighed = self.weigh_step(step, shared)
            weights = weighed.weights
            self.weights = filled(self.num_tasks, self.present, weights.to(self.weights))
            self.epoch_weights.add(self.present, weights)
        finally:
            self.present, self.index = slice(None), list(range(self.num_tasks))
        self.step += 1
        return weighed

    def end_epoch(self, metrics: Metrics | None = None) -> None:
        """Closes an epoch: a pass over the data, or the steps between two validations.

        Args:
            metrics: The validation metric of each task, a mapping from task name, or a sequence or
                tensor `[T]`. Ignored by strategies that read none. Must be equal on all ranks.

        Raises:
            ValueError: The strategy reads metrics, and there are none, or one is not finite.
        """
        self._raise_late(self.late_errors.raise_all)
        with self.undone_if_refused():
            self.weights = self.epoch_weights.mean(default=self.weights)
            self.epoch_weights.reset()
            self.close_epoch(metrics)
            if self.rescale in ("one", "tasks"):
                self.weights = self._rescaled(self.weights, None)
            self.epoch += 1

    def _raise_late(self, errors: Callable[[], None]) -> None:
        try:
            errors()
        except ValueError:
            for module in self.modules():
                if isinstance(module, Strategy):
                    module.after_bad_step()
            raise

    def after_bad_step(self) -> None:
        """Hook: a step was found bad after later ones. Its tensors were never kept."""

    def close_epoch(self, metrics: Metrics | None) -> None:
        """Hook: what a strategy learns from an epoch. Rebinds `weights` if the next has its own."""

    @abstractmethod
    def weigh_step(self, step: Step, shared: Shared | None) -> Weighed:
        """Returns the weights of the tasks present on any rank, and how to spend them."""

    def spend_step(self, step: Step, shared: Shared | None) -> Callable[[Tensor, Tensor], Tensor]:
        """Returns how to spend given weights on a step that was not weighed; records nothing."""
        return step.attach

    def _average_others(self, others: tuple[Step, ...], step: Step) -> tuple[Step, ...]:
        """Returns the losses of further batches over all ranks, which are of the same tasks."""
        averaged = tuple(average_over_ranks(self.num_tasks, other, None) for other in others)
        for other in averaged:
            if other.index != step.index:
                raise ValueError(
                    f"A batch in `independent` has the tasks "
                    f"{[self.tasks[i] for i in other.index]}, and the first has "
                    f"{[self.tasks[i] for i in step.index]}: give all of them the same tasks."
                )
            self._check_values(other)
        return averaged

    def _check_values(self, step: Step) -> Tensor | None:
        """Refuses bad losses at once where that costs no wait, else returns a flag of good ones."""
        index, seen = step.index, step.seen
        limit = LARGEST_LOSS[seen.dtype]
        lowest = 0.0 if self.nonnegative_losses else -limit
        if seen.is_cpu or self.check == "now" or self.waits:
            if not all(lowest <= loss <= limit for loss in seen.tolist()):
                raise ValueError(describe_bad_loss(self.tasks, index, seen, limit, lowest))
            return None
        good: Tensor = ((seen <= limit) & (seen >= lowest)).all()

        def describe(values: Tensor) -> str:
            return describe_bad_loss(self.tasks, index, values, limit, lowest)

        self.late_errors.watch(self.step, good, seen, describe)
        return good

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.late_errors.clear()  # they tell of steps that are undone now
        saved = state_dict.get(f"{prefix}_extra_state")
        if saved is not None and saved["shared"] != self.shared_leaves.shapes:
            self.shared_leaves = SharedLeaves(len(self.tasks) == 1, saved["shared"])

    def get_extra_state(self) -> dict[str, Any]:
        """Returns what is saved beside the buffers: also the shapes of what the tasks share."""
        return super().get_extra_state() | {"shared": self.shared_leaves.shapes}

    def _follow(self, device: torch.device) -> None:
        if device == self.weights.device:
            return
        if device.type == "meta":
            raise ValueError(
                f"The losses are on {device}, where tensors have no values, and the strategy is on "
                f"{self.weights.device}: compute the losses on a real device."
            )
        self.to(device)

    def _rescaled(self, weights: Tensor, gram: Tensor | None) -> Tensor:
        """Returns the weights in the length that `rescale` asks for."""
        if self.rescale == "none":
            return weights
        length = None
        if gram is not None and self.rescale == "equal-norm":
            gram = gram.to(weights)
            length = (weights @ gram @ weights).clamp_min(0).sqrt()
        return weights * self._stretch(weights, gram, length)

    def _stretch(self, weights: Tensor, gram: Tensor | None, length: Tensor | None) -> Tensor:
        """Returns the factor that `rescale` asks for; `length` is that of the shared gradient."""
        if self.rescale == "equal-norm":
            assert gram is not None
            assert length is not None
            goal = gram.mean().clamp_min(0).sqrt().to(length)
        else:
            length = weights.sum()
            goal = torch.full_like(length, 1 if self.rescale == "one" else self.num_tasks)
        return torch.where(length > 0, goal / length, 1.0)

    def _seek(
        self, step: Step, shared: Shared | None, *, weighted_heads: bool, remembered: bool = False
    ) -> Sought:
        """Returns what the task gradients are taken of; for the options see `seek`."""
        names = [self.tasks[i] for i in step.index]
        if step.scattered:
            raise ValueError(
                f"{type(self).__name__} reads gradients, and task "
                f"{self.tasks[step.scattered[0]]!r} is absent from one rank but present on "
                "another: give every rank each of the tasks."
            )
        known = self.shared_leaves.copy()
        sought = seek(
            step, names, shared, known, weighted_heads=weighted_heads, remembered=remembered
        )
        self.shared_leaves = known
        return sought

    def refuse_infinite(self, sizes: Tensor) -> None:
        """Refuses gradients of the tasks present whose sizes `[n]`, of any norm, are not finite.

        Raises:
            ValueError: Names the first task.
        """
        for i, number in zip(self.index, sizes.tolist(), strict=True):
            if not abs(number) < float("inf"):
                raise ValueError(
                    f"The gradient of task {self.tasks[i]!r} is not finite (its size is "
                    f"{number!r}): skip this batch; torch.autograd.set_detect_anomaly(True) shows "
                    "where it comes from."
                )

    def _gram(self, gradients: TaskGradients) -> Tensor:
        """Returns the inner products of the task gradients, `[n, n]`, which are finite."""
        gram = gradients.gram()
        self.refuse_infinite(gram.diagonal())
        return gram


_NOTHING = nullcontext()


def _no_autocast(device: torch.device) -> AbstractContextManager[None]:
    kind = device.type
    if _has_autocast(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return _NOTHING


@functools.cache
def _has_autocast(device_type: str) -> bool:
    return torch.amp.autocast_mode.is_autocast_available(device_type)
