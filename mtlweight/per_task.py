"""Options that hold one number for each task."""

from __future__ import annotations

from collections.abc import Callable

from mtlweight.inputs import Metrics, read_metrics
from mtlweight.options import OptionError


def per_task(
    tasks: tuple[str, ...],
    given: Metrics,
    option: str,
    allowed: Callable[[float], bool] = lambda number: True,
    must: str = "",
) -> dict[str, float]:
    """Returns an option that holds one number for each task.

    Args:
        tasks: The names of the tasks.
        given: A mapping from task name, or numbers in the order of `tasks`.
        option: The name of the option, for messages.
        allowed: Tells whether a number will do.
        must: What a number must, to go on "it must" in a message.

    Raises:
        OptionError: Names the task that is missing or unknown, or whose number is not finite or
            not allowed.
    """
    try:
        numbers = read_metrics(tasks, given, f"`{option}`")
    except (TypeError, ValueError) as error:
        raise OptionError(str(error).split(" Leave the task out")[0]) from None
    if missing := [task for task in tasks if task not in numbers]:
        raise OptionError(
            f"`{option}` has nothing for task {missing[0]!r}: give one number for each."
        )
    for task, number in numbers.items():
        if not allowed(number):
            raise OptionError(f"`{option}` of task {task!r} is {number!r}: it must {must}.")
    return numbers


def positive(number: float) -> bool:
    """Tells whether a number is above zero."""
    return number > 0


def shares_of(tasks: tuple[str, ...], given: Metrics, option: str) -> list[float]:
    """Returns an option that holds one non-negative number for each task, in their order.

    Raises:
        OptionError: A number is missing, negative or not finite, or all are zero.
    """
    numbers = per_task(tasks, given, option, lambda number: number >= 0, "not be negative")
    if not any(numbers.values()):
        raise OptionError(f"All `{option}` are zero: at least one task must be learned.")
    return list(numbers.values())
