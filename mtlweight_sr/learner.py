"""A network with its optimizer and moving average, guarded against steps that are not finite."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from mtlweight_sr.settings import TrainingSettings

__all__ = ["Learner", "TrainingDiverged"]

_PATIENCE = 10


class TrainingDiverged(RuntimeError):  # noqa: N818 - it says what happened
    """Too many steps in a row were not finite."""


class Learner:
    """Takes optimizer steps along finite gradients, and follows them with a moving average.

    A step whose loss or gradient is not finite is left out: it changes neither the network nor
    its average. Ten of them in a row end the training.

    Args:
        model: the network, on the device to train on.
        settings: optimizer, schedule, average, clipping.

    Attributes:
        model: the network.
        average: its moving average, in evaluation mode.
        skipped: the number of steps left out.
    """

    def __init__(self, model: nn.Module, settings: TrainingSettings) -> None:
        self.settings = settings
        self.model = model.train()
        self.average = copy.deepcopy(model).requires_grad_(False).eval()
        optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
        self.optimizer = optimizer(
            self.model.parameters(),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        self.skipped = 0
        self._in_a_row = 0

    def learn(self, loss: Tensor, step: int) -> bool:
        """Takes the step of a scalar loss, unless its gradient is not finite.

        Args:
            loss: finite, attached to the network.
            step: the number of the step, from 0.

        Returns:
            Whether the step was taken.

        Raises:
            TrainingDiverged: this was the tenth in a row that was not.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate_at(step)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        limit = math.inf if self.settings.clip is None else self.settings.clip
        if not torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit).isfinite():
            self.skip("gradient", step)
            return False
        self.optimizer.step()
        self._in_a_row = 0
        self._follow(1 - self.settings.average_at(step))
        return True

    def skip(self, what: str, step: int) -> None:
        """Counts a step that is left out since its loss or gradient is not finite.

        Raises:
            TrainingDiverged: it is the tenth in a row.
        """
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= _PATIENCE:
            raise TrainingDiverged(
                f"The {what} was not finite in {_PATIENCE} steps in a row, up to step {step + 1}: "
                f"the network has diverged. Lower `learning_rate` ({self.settings.learning_rate:g})"
                ", set `clip`, or turn `amp` off."
            )

    @torch.no_grad()
    def _follow(self, share: float) -> None:
        for mean, new in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(new, share)
        for kept, current in zip(self.average.buffers(), self.model.buffers(), strict=True):
            kept.copy_(current)

    def state_dict(self) -> dict[str, Any]:
        """Returns everything to go on from, in tensors and plain containers."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "skipped": self.skipped,
            "in_a_row": self._in_a_row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.skipped = state["skipped"]
        self._in_a_row = state["in_a_row"]
