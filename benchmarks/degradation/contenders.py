"""Who takes the turns on each unit, and the least that has to be done there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.degradation import floors, operators, wholes
from benchmarks.degradation.floors import Work
from benchmarks.degradation.images import rows_of, stratified
from benchmarks.degradation.measure import Call
from benchmarks.degradation.units import Unit
from mtlweight_sr.models import RRDBNet, SRResNet


@dataclass(frozen=True)
class Contender:
    """One way to do it.

    Attributes:
        library: `"mtlweight"`, `"BasicSR"`, `"kornia"`, or `"training"` for the step that is fed.
        build: Returns the call of a unit.
        route: Which way, where there are several.
        cpu_rounds: Fewer than the unit's, for those that take very long on a CPU.
    """

    library: str
    build: Callable[[Unit], Call]
    route: str = ""
    cpu_rounds: int | None = None

    def rounds(self, unit: Unit) -> int:
        """Returns how many turns it takes."""
        return unit.rounds if self.cpu_rounds is None or unit.on_gpu else self.cpu_rounds

    def __str__(self) -> str:
        return ":".join(part for part in (self.library, self.route) if part)


_JPEG = operators.jpeg_ours
_NOISE = [
    Contender("mtlweight", operators.noise),
    Contender("BasicSR", operators.noise_basicsr),
]
_OURS = [
    Contender("mtlweight", wholes.pipeline()),
    Contender("mtlweight", wholes.pipeline(compat="realesrgan"), "compat"),
]
_FEW = 2  # seconds a sample
_WHOLE = [*_OURS, Contender("BasicSR", wholes.pipeline_basicsr())]
CONTENDERS: dict[str, list[Contender]] = {
    "kernels": [
        Contender("mtlweight", operators.kernels),
        Contender("BasicSR", operators.kernels_basicsr),
    ],
    "blur": [
        Contender("mtlweight", operators.blur_ours),
        Contender("BasicSR", operators.blur_basicsr),
        Contender("kornia", operators.blur_kornia),
    ],
    "resize": [
        Contender("mtlweight", operators.resize),
        Contender("BasicSR", operators.resize_torch),
    ],
    "Gaussian noise": _NOISE,
    "Poisson noise": _NOISE,
    "JPEG": [
        Contender("mtlweight", _JPEG("libjpeg")),
        Contender("mtlweight", _JPEG("basicsr"), "compat"),
        Contender("BasicSR", operators.jpeg_basicsr),
        Contender("kornia", operators.jpeg_kornia),
    ],
    "sharpening": [
        Contender("mtlweight", operators.sharpening),
        Contender("BasicSR", operators.sharpening_basicsr, cpu_rounds=1),
    ],
    "pipeline": _WHOLE,
    "pipeline and sharpening": [
        *_OURS,
        Contender("BasicSR", wholes.pipeline_basicsr(_FEW), cpu_rounds=_FEW),
    ],
    "step": [
        *_WHOLE,
        Contender("training", wholes.training_step(RRDBNet), "RRDBNet"),
        Contender("training", wholes.training_step(SRResNet), "SRResNet"),
    ],
}
_CONTEXT = Contender("mtlweight", wholes.pipeline(wholes.CONTEXT), f"context={wholes.CONTEXT}")


def contenders(unit: Unit) -> list[Contender]:
    """Returns who takes part in a unit."""
    found = CONTENDERS[unit.operator]
    if unit.operator.startswith("pipeline") and unit.size > wholes.CROP + wholes.CONTEXT:
        return [*found, _CONTEXT]
    return found


def work(unit: Unit) -> Work | None:
    """Returns the least work of a batch, None where it is nothing to speak of."""
    side, rows = unit.size, unit.rows()
    if unit.operator == "kernels":
        return None
    if unit.whole:
        cubes = stratified(unit.rounds, unit.batch)
        total = sum((floors.pipeline(rows_of(cube), side, side) for cube in cubes), Work())
        if unit.sharpened:
            total += floors.sharpening(side, side).times(unit.batch * unit.rounds)
        return total.times(1 / unit.rounds)
    of_row: Callable[[int], Work] = {
        "blur": lambda i: floors.stage_blur(rows.first, i, side, side),
        "resize": lambda i: floors.resize_by(side, side, float(rows.first.resize_scale[i])),
        "Gaussian noise": lambda i: floors.gaussian(
            side, side, gray=bool(rows.first.gray_noise[i])
        ),
        "Poisson noise": lambda i: floors.poisson(side, side, gray=bool(rows.first.gray_noise[i])),
        "JPEG": lambda i: floors.jpeg(side, side),
        "sharpening": lambda i: floors.sharpening(side, side),
    }[unit.operator]
    return sum((of_row(i) for i in range(unit.batch)), Work())
