"""What a user hands to a strategy, and the checks at its door."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from mtlweight.running import Index

Losses = Mapping[str, Tensor] | Sequence[Tensor] | Tensor
Metrics = Mapping[str, float] | Sequence[float] | Tensor | np.ndarray[Any, Any]
Root = Tensor | GradientEdge

LARGEST_LOSS = {torch.float32: torch.finfo(torch.float32).max ** 0.5, torch.float64: 1e30}
"""By precision, where the squares of losses and their gradients leave the range of float32 sums."""


@dataclass(frozen=True)
class Step:
    """The losses of one step: of the m tasks on this rank, and of the n tasks on any.

    Attributes:
        index: The n tasks, in the strategy's order.
        seen: Their losses, averaged over ranks, detached, `[n]`, float32 or float64.
        local: Which of the n this rank holds.
        values: The losses it holds, attached to the network, `[m]`.
        roots: What the gradient of each is taken of.
        slopes: The derivative of each value by its root, `[m]`; None where it is one.
        factors: What this rank multiplies its losses with, so that the mean of the ranks' gradients
            is the gradient of `seen`, `[m]`; None where that is one.
        counts: The number of samples behind each loss over all ranks, `[n]`, on the host; None
            where the loop does not tell.
        others: The same tasks on further, independent batches.
        scattered: Those of the n tasks that some rank lacks.
    """

    index: list[int]
    seen: Tensor
    local: Index
    values: Tensor
    roots: list[Root]
    slopes: Tensor | None = None
    factors: Tensor | None = None
    counts: Tensor | None = None
    others: tuple[Step, ...] = ()
    scattered: Sequence[int] = ()

    @property
    def scales(self) -> Tensor | None:
        """What the gradient of each root is multiplied with, `[m]`; None for one."""
        if self.slopes is None or self.factors is None:
            return self.factors if self.slopes is None else self.slopes
        return self.slopes * self.factors

    def attach(self, value: Tensor | None, weights: Tensor) -> Tensor:
        """Returns a scalar worth `value` whose gradient is the sum of weight `[n]` x loss.

        Without a value, it is worth that sum.
        """
        slopes = weights if isinstance(self.local, slice) else weights[self.local]
        if self.factors is not None:
            slopes = slopes * self.factors
        total = torch.dot(slopes.to(self.values.dtype), self.values)
        if value is None:
            if self.factors is None:
                return total
            value = torch.dot(weights, self.seen)
        return value + (total - total.detach())


def by_task(tasks: tuple[str, ...], given: Any, what: str) -> dict[str, Any]:
    """Returns a mapping, sequence or tensor `[T]` as a mapping from task name.

    A mapping may leave tasks out; a sequence or a tensor holds one entry for each.

    Raises:
        ValueError: Names the task that is unknown, or both lengths.
        TypeError: `given` is none of the three.
    """
    if isinstance(given, Mapping):
        unknown = [name for name in given if name not in tasks]
        if unknown:
            raise ValueError(
                f"{what} of task {unknown[0]!r}: no such task; the tasks are {', '.join(tasks)}."
            )
        if not given:
            raise ValueError(f"{what} are empty: at least one of {', '.join(tasks)} must be there.")
        return {name: given[name] for name in tasks if name in given}
    if isinstance(given, Tensor | np.ndarray):
        given = given.reshape(1) if given.ndim == 0 else given
        shape = list(given.shape)
    elif isinstance(given, Sequence) and not isinstance(given, str):
        shape = [len(given)]
    else:
        raise TypeError(
            f"{what} must be a mapping from task name, a sequence or a tensor [{len(tasks)}], got "
            f"{type(given).__name__}: {given!r}."
        )
    if shape != [len(tasks)]:
        raise ValueError(
            f"{what} must be [{len(tasks)}], one for each of {', '.join(tasks)}, got {shape}. To "
            "leave tasks out, give a mapping from task name."
        )
    return dict(zip(tasks, given, strict=True))


def read_losses(tasks: tuple[str, ...], losses: Losses, *, training: bool) -> Step:
    """Returns the losses of this rank as a step, or says which of them can't be trained on.

    Raises:
        TypeError: A loss is not a floating point tensor.
        ValueError: A loss is unknown, missing, not a scalar, detached, or on another device.
        RuntimeError: Autograd is off, or has freed the graph of a loss.
    """
    named = by_task(tasks, losses, "Losses")
    for name, loss in named.items():
        _check_type(name, loss)
    first, device = next((name, loss.device) for name, loss in named.items())
    for name, loss in named.items():
        if loss.device != device:
            raise ValueError(
                f"The loss of task {name!r} is on {loss.device}, that of task {first!r} on "
                f"{device}: move them to one device."
            )
    if training:
        _check_attached(named)
    dtype = (
        torch.float64 if any(v.dtype == torch.float64 for v in named.values()) else torch.float32
    )
    values = torch.stack(
        [
            loss if loss.ndim == 0 and loss.dtype == dtype else loss.reshape(()).to(dtype)
            for loss in named.values()
        ]
    )
    index = [tasks.index(name) for name in named]
    roots = _roots(losses, named) if training else []
    return Step(index, values.detach(), slice(None), values, roots)


def _check_type(name: str, loss: Any) -> None:
    if not isinstance(loss, Tensor):
        way = (
            "leave the task out of the mapping if it is absent from this batch"
            if loss is None
            else "compute it with torch, so that it carries a gradient"
        )
        raise TypeError(f"The loss of task {name!r} is {loss!r}, not a tensor: {way}.")
    if not loss.is_floating_point():
        raise TypeError(
            f"The loss of task {name!r} is {loss.dtype}: losses are floating point numbers."
        )
    if loss.numel() != 1:
        raise ValueError(
            f"The loss of task {name!r} has shape {list(loss.shape)}, not []: reduce it first, as "
            "in loss.mean()."
        )


def _check_attached(named: Mapping[str, Tensor]) -> None:
    if not torch.is_grad_enabled():
        raise RuntimeError(
            "A strategy in training mode was called under torch.no_grad(): call it with autograd "
            "on, or put it into strategy.eval() to read a loss without training on it."
        )
    for name, loss in named.items():
        if not loss.requires_grad:
            raise ValueError(
                f"The loss of task {name!r} is detached ({float(loss)!r} carries no gradient): "
                "give it as the network returned it, without .detach(), .item() or torch.no_grad()."
                if not loss.is_meta
                else f"The loss of task {name!r} is detached and carries no gradient."
            )
        if _is_freed(loss):
            raise RuntimeError(
                f"The graph of the loss of task {name!r} was freed by an earlier backward: "
                "compute the losses anew for every step, or call the earlier backward with "
                "retain_graph=True."
            )


def _roots(losses: Losses, named: Mapping[str, Tensor]) -> list[Root]:
    """Returns what to differentiate for each task.

    The elements of a stacked tensor are followed to what was stacked, or else each task would seem
    to depend on the heads of all.
    """
    if isinstance(losses, Tensor) and losses.ndim == 1 and losses.grad_fn is not None:
        node = losses.grad_fn
        if node.name() == "StackBackward0":
            edges = []
            for name, (stacked, number) in zip(named, node.next_functions, strict=True):
                if stacked is None:
                    raise ValueError(
                        f"The loss of task {name!r} was detached before it was stacked: give it as "
                        "the network returned it."
                    )
                edges.append(GradientEdge(stacked, number))
            return list(edges)
    return list(named.values())


def _is_freed(loss: Tensor) -> bool:
    """Tells whether a backward has freed the graph, from the first node that saved a tensor.

    Before PyTorch 2.10 that can't be told without unpacking, which would recompute a checkpointed
    network or fetch it from disk: there it is left to the backward to say so.
    """
    queue = [loss.grad_fn or get_gradient_edge(loss).node]
    for _ in range(64):  # it is a few nodes away: a loss function saves its input
        if not queue:
            return False
        node = queue.pop(0)
        for name in _saved_tensors(type(node)):
            raw = getattr(node, f"_raw_saved_{name}")
            if getattr(raw, "data", raw) is not None:
                return False
            try:
                getattr(node, f"_saved_{name}")  # None where nothing had to be saved
            except RuntimeError:
                return True
        queue.extend(following for following, _ in node.next_functions if following is not None)
    return False


_SAVED: dict[type, list[str]] = {}


def _saved_tensors(node_type: type) -> list[str]:
    if node_type not in _SAVED:
        prefix = "_raw_saved_"
        names = [name.removeprefix(prefix) for name in dir(node_type) if name.startswith(prefix)]
        # A list of tensors has a raw attribute too, but not one to ask.
        _SAVED[node_type] = [name for name in names if name not in ("tensors", "indices")]
    return _SAVED[node_type]


def read_counts(
    tasks: tuple[str, ...], step: Step, counts: Mapping[str, float] | None
) -> list[float]:
    """Returns the number of samples behind each loss of a step, ones by default, `[m]`.

    Raises:
        ValueError: A task is unknown, one that is present has no count, or a count is not positive.
    """
    if counts is None:
        return [1.0] * len(step.index)
    numbers = read_metrics(tasks, counts, "`counts`")
    for task in (tasks[i] for i in step.index):
        if numbers.get(task, 0.0) <= 0:
            raise ValueError(
                f"`counts` of task {task!r} is {numbers.get(task)!r}: every task that is present "
                "needs the number of samples behind its loss, above zero."
            )
    return [numbers[tasks[i]] for i in step.index]


def describe_bad_loss(
    tasks: tuple[str, ...], index: list[int], values: Tensor, limit: float, lowest: float
) -> str:
    """Returns the sentence that names the first task whose loss can't be trained on, and why."""
    for task, value in zip(index, values.tolist(), strict=True):
        name = f"The loss of task {tasks[task]!r} is {value!r}"
        if value != value or value in (float("inf"), float("-inf")):
            return (
                f"{name}: nothing can be learned from it. Skip this batch, or leave the task out "
                "of the mapping; torch.autograd.set_detect_anomaly(True) shows where it comes from."
            )
        if abs(value) > limit:
            return (
                f"{name}, above {limit:.2g}: the squares of its gradients overflow. Scale or clip "
                "the loss."
            )
        if value < lowest:
            return (
                f"{name}, which has no meaning for this strategy: add a constant that makes every "
                "loss non-negative, or choose another strategy."
            )
    raise AssertionError("no loss is bad")


def read_metrics(
    tasks: tuple[str, ...], metrics: Metrics, what: str = "Metrics"
) -> dict[str, float]:
    """Returns the metrics by task, as floats; a mapping may leave tasks out.

    Raises:
        ValueError: A metric is unknown or not finite; the message names the task and the value.
        TypeError: A metric is not a number.
    """
    numbers = {}
    for name, metric in by_task(tasks, metrics, what).items():
        if isinstance(metric, Tensor) and metric.numel() == 1:
            metric = metric.item()
        if isinstance(metric, bool) or not isinstance(metric, int | float):
            try:
                metric = float(metric)  # NumPy's scalars are numbers too
            except (TypeError, ValueError):
                raise TypeError(
                    f"{what} of task {name!r} is {metric!r}: it must be a number."
                ) from None
        if not abs(metric) < float("inf"):
            raise ValueError(
                f"{what} of task {name!r} is {metric!r}: it must be finite. Leave the task out of "
                "the mapping to go on with its previous one."
            )
        numbers[name] = float(metric)
    return numbers
