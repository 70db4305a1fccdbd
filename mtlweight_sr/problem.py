"""What a network is trained on and measured by."""

from __future__ import annotations

from dataclasses import dataclass

from mtlweight_sr.data import Photographs
from mtlweight_sr.tasks.draws import TaskDraws
from mtlweight_sr.validation import ValidationSet

__all__ = ["Problem"]


@dataclass(frozen=True)
class Problem:
    """What is learned, from what, and measured by what.

    Attributes:
        tasks: a task space.
        photographs: HR images to train on.
        validation: the fixed validation set; it holds every task.

    Raises:
        ValueError: the validation set lacks a task.
    """

    tasks: TaskDraws
    photographs: Photographs
    validation: ValidationSet

    def __post_init__(self) -> None:
        if missing := [name for name in self.tasks.names if name not in self.validation.tasks]:
            raise ValueError(
                f"`validation` must hold every task: it has {', '.join(self.validation.tasks)}, "
                f"and not {missing[0]!r}; build it from the same task space."
            )
