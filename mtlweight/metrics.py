r"""How much better a multi-task network is than a reference: $\Delta_p$ and $\Delta_m$."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

Metrics = Mapping[str, float | Sequence[float] | Tensor]
Directions = bool | Mapping[str, bool | Sequence[bool]]


def delta_p(metrics: Metrics, reference: Metrics, higher_is_better: Directions = True) -> float:
    r"""Mean improvement over the reference in per cent, every task counting alike.

    $$\Delta_p = \frac{100}{T} \sum_{i=1}^{T} \frac{1}{M_i} \sum_{m=1}^{M_i}
      s_{im} \frac{N_{im} - B_{im}}{|B_{im}|}$$

    with $s_{im} = 1$ where higher is better, else $-1$. **Higher is better**; 0 is as good as
    the reference.

    Args:
        metrics: $N$, by task: one value, or the $M_i$ values of the task.
        reference: $B$, of the same form, usually that of single-task networks; none is zero.
        higher_is_better: For all metrics, or by task: one bool, or $M_i$ of them.

    Returns:
        The improvement in per cent.

    Raises:
        ValueError: If the tasks or the numbers of metrics differ, a value isn't finite, or a
            reference is zero.

    Source:
        Maninis et al., arXiv 1904.08918; arXiv 2308.12029. $|B|$ for negative references is ours.
    """
    deltas = task_deltas(metrics, reference, higher_is_better)
    return sum(deltas.values()) / len(deltas)


def delta_m(metrics: Metrics, reference: Metrics, higher_is_better: Directions = True) -> float:
    r"""Mean drop below the reference in per cent, every *metric* counting alike.

    $$\Delta_m = \frac{100}{M} \sum_{m=1}^{M} -s_m \frac{N_m - B_m}{|B_m|}$$

    over the $M$ metrics of all tasks together, so a task with five metrics counts five times.
    **Lower is better**; 0 is as good as the reference.

    Args:
        metrics: $N$, by task: one value, or the values of the task.
        reference: $B$, of the same form, usually that of single-task networks; none is zero.
        higher_is_better: For all metrics, or by task: one bool, or one per metric.

    Returns:
        The drop in per cent.

    Raises:
        ValueError: If the tasks or the numbers of metrics differ, a value isn't finite, or a
            reference is zero.

    Source:
        arXiv 2202.01017 and the benchmarks after it. $|B|$ for negative references is ours.
    """
    gains = _gains(metrics, reference, higher_is_better)
    flat = [gain for of_task in gains.values() for gain in of_task]
    return -100 * sum(flat) / len(flat)


def task_deltas(
    metrics: Metrics, reference: Metrics, higher_is_better: Directions = True
) -> dict[str, float]:
    r"""Improvement of each task over the reference in per cent; `delta_p` is their mean.

    $\Delta_i = \frac{100}{M_i} \sum_m s_{im} (N_{im} - B_{im}) / |B_{im}|$. Higher is better, and
    the least value names the task that pays for the others.

    Args:
        metrics: $N$, by task: one value, or the $M_i$ values of the task.
        reference: $B$, of the same form; none is zero.
        higher_is_better: For all metrics, or by task: one bool, or $M_i$ of them.

    Returns:
        The improvement of each task in per cent, in the order of `metrics`.

    Raises:
        ValueError: If the tasks or the numbers of metrics differ, a value isn't finite, or a
            reference is zero.

    Source:
        As `delta_p`.
    """
    gains = _gains(metrics, reference, higher_is_better)
    return {task: 100 * sum(of_task) / len(of_task) for task, of_task in gains.items()}


def _gains(
    metrics: Metrics, reference: Metrics, higher_is_better: Directions
) -> dict[str, list[float]]:
    """Signed relative differences by task, after all checks."""
    if not metrics:
        raise ValueError("`metrics` must hold at least one task, got none.")
    _same_tasks("reference", list(reference), list(metrics))
    if isinstance(higher_is_better, Mapping):
        _same_tasks("higher_is_better", list(higher_is_better), list(metrics))
    gains = {}
    for task in metrics:
        new = _values("metrics", task, metrics[task])
        base = _values("reference", task, reference[task])
        signs = _signs(task, higher_is_better, len(new))
        if not new or len(base) != len(new):
            raise ValueError(
                f"`metrics` and `reference` must hold equally many values of a task, at least one: "
                f"task {task!r} has {len(new)} and {len(base)}."
            )
        if 0 in base:
            raise ValueError(
                f"`reference` must not be zero, a relative difference needs it: task {task!r} has "
                f"{base}; leave the metric out or report it by itself."
            )
        gains[task] = [s * (n - b) / abs(b) for s, n, b in zip(signs, new, base, strict=True)]
    return gains


def _same_tasks(argument: str, got: list[str], expected: list[str]) -> None:
    if set(got) != set(expected):
        raise ValueError(f"`{argument}` must be of the tasks {expected}, got {got}.")


def _values(argument: str, task: str, value: float | Sequence[float] | Tensor) -> list[float]:
    if isinstance(value, Tensor):
        value = value.detach().flatten().tolist()
    if isinstance(value, str):
        raise TypeError(f"`{argument}` must be numbers: task {task!r} has {value!r}.")
    values = [float(v) for v in value] if isinstance(value, Sequence) else [float(value)]
    for v in values:
        if not math.isfinite(v):
            raise ValueError(f"`{argument}` must be finite: task {task!r} has {v}.")
    return values


def _signs(task: str, higher_is_better: Directions, count: int) -> list[int]:
    direction = (
        higher_is_better[task] if isinstance(higher_is_better, Mapping) else higher_is_better
    )
    flags = list(direction) if isinstance(direction, Sequence) else [direction] * count
    if len(flags) != count or any(flag not in (0, 1) for flag in flags):
        raise ValueError(
            f"`higher_is_better` must hold {count} booleans for task {task!r}, got {direction!r}."
        )
    return [1 if flag else -1 for flag in flags]
