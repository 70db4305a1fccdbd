"""What is measured: an operator or the whole, on a batch of crops of one size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.degradation.images import crops, rows_of, stratified
from mtlweight_sr.degradation import DegradationParameters

SIZES = ((400, 12), (256, 16))
"""Side of the crops and how many: those of Real-ESRGAN's training, and training without context."""


@dataclass(frozen=True)
class Unit:
    """One table's worth of turns.

    Attributes:
        operator: What is done: an operator, `"pipeline"`, `"pipeline and sharpening"` or `"step"`.
        size: Side of the crops.
        batch: How many.
        rounds: How often.
        device: Where.
    """

    operator: str
    size: int
    batch: int
    rounds: int
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.operator}-{self.size}-B{self.batch}-{self.device}".replace(" ", "-")

    @property
    def whole(self) -> bool:
        """Whether rounds differ in what they do: they stand for the distribution together."""
        return self.operator.startswith("pipeline") or self.operator == "step"

    @property
    def sharpened(self) -> bool:
        return self.operator.endswith("sharpening")

    def images(self) -> Tensor:
        return crops(self.size, self.batch).to(self.device)

    def rows(self) -> DegradationParameters:
        """Rows that are spread evenly over the distribution."""
        return rows_of(stratified(1, self.batch)[0])

    @property
    def on_gpu(self) -> bool:
        return torch.device(self.device).type == "cuda"


_ROUNDS = {"blur": 7, "resize": 7, "Gaussian noise": 7, "Poisson noise": 5, "JPEG": 7}
_CPU = [
    Unit("kernels", 400, 12, 15),
    Unit("kernels", 400, 48, 15),
    *(Unit(operator, *size, rounds) for size in SIZES for operator, rounds in _ROUNDS.items()),
    Unit("sharpening", *SIZES[0], 3),
    *(Unit("pipeline", *size, 24) for size in SIZES),
    *(Unit("pipeline and sharpening", *size, 12) for size in SIZES),
]
UNITS = [
    *_CPU,
    *(replace(unit, rounds=24, device="cuda") for unit in _CPU),
    Unit("step", 256, 48, 24, "cuda"),
]
