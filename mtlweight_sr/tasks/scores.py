"""Tasks told apart by effective strength instead of by single parameters."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from mtlweight_sr.degradation.mixture import Space
from mtlweight_sr.degradation.parameters import DegradationParameters
from mtlweight_sr.degradation.sampling import draw_parameters, draw_rows, parameters_from_cube
from mtlweight_sr.degradation.strength import effective_strength
from mtlweight_sr.tasks.draws import TaskDraws, TaskIds, checked_task_ids

__all__ = ["ScoreTaskSpace"]

_ATTEMPTS = 4
_CALIBRATION_ROWS = 16384
_CALIBRATION_STREAM = 2**32 - 1
_AT_ONCE = 2048  # all kernels of a calibration at once would take gigabytes


@lru_cache(maxsize=8)
def _calibrate(space: Space) -> tuple[float, float, tuple[Fraction, ...]]:
    """Medians of both scores, and the share of each of the four tasks, over fixed rows."""
    rows = draw_parameters(space, range(_CALIBRATION_ROWS), 0, _CALIBRATION_STREAM)
    scores = [effective_strength(rows[i : i + _AT_ONCE]) for i in range(0, len(rows), _AT_ONCE)]
    blur, noise = (torch.cat(some) for some in zip(*scores, strict=True))
    # The middle of an even number of values: the mean of the two middle ones leaves exactly half on
    # either side.
    middle = [
        float(v.sort().values[len(v) // 2 - 1 : len(v) // 2 + 1].mean()) for v in (blur, noise)
    ]
    tasks = (blur >= middle[0]).long() + 2 * (noise >= middle[1]).long()
    shares = tuple(Fraction(int(n), len(tasks)) for n in torch.bincount(tasks, minlength=4))
    return middle[0], middle[1], shares


class ScoreTaskSpace(TaskDraws):
    """Four tasks cut at the medians of effective blur and noise; used like a `TaskSpace`.

    The scores (`effective_blur`, `effective_noise`) follow the image through both stages, so these
    tasks differ more in what the images look like than boxes do. They are no boxes: rows of
    parameters are drawn from the whole space until one belongs to the task, which is exact; no
    image is ever rejected.

    The medians and `masses` are measured once on 16384 rows of a fixed seed, hence the same on
    every machine; a mass is known to a standard error of 0.004.

    Args:
        space: The distribution.

    Attributes:
        space: The distribution.
        names: mild, blur, noise, severe.
        masses: Natural probability of every task, as measured; they sum to 1.
        blur_median: Where effective blur is cut, in HR pixels.
        noise_median: Where effective noise is cut, of 1.

    Raises:
        ValueError: A space on which one of the tasks has no probability, for example without noise.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.names = ("mild", "blur", "noise", "severe")
        self.blur_median, self.noise_median, shares = _calibrate(space)
        if 0 in shares:
            raise ValueError(
                "expected a space in which both effective blur and noise vary, got shares "
                f"{', '.join(map(str, shares))} for {', '.join(self.names)}; write TaskSpace with "
                "tasks of your own"
            )
        self.masses: Mapping[str, Fraction] = dict(zip(self.names, shares, strict=True))

    def draw(
        self, task_ids: TaskIds, ids: Sequence[int] | Tensor, seed: int, stream: int = 0
    ) -> DegradationParameters:
        """Parameters of samples of given tasks; arguments and errors as in `TaskSpace.draw`.

        A sample is the first row of its id's own sequence that belongs to its task.
        """
        cube, _, seeds = draw_rows(ids, seed, stream)
        tasks = checked_task_ids(task_ids, self.names, len(seeds))
        identities = torch.as_tensor(ids)
        pending = torch.arange(len(seeds))
        for start in itertools.count(0, _ATTEMPTS):
            if not len(pending):
                break
            tries = [
                draw_rows(identities[pending], seed, stream, start + i) for i in range(_ATTEMPTS)
            ]
            rows = torch.stack([row for row, _, _ in tries], 1)
            keys = torch.stack([key for _, _, key in tries], 1)
            fits = self.assign(rows.flatten(0, 1)).view(-1, _ATTEMPTS) == tasks[pending, None]
            first, found = fits.byte().argmax(1), fits.any(1)
            done = found.nonzero()[:, 0]
            cube[pending[done]] = rows[done, first[done]]
            seeds[pending[done]] = keys[done, first[done]]
            pending = pending[~found]
        return parameters_from_cube(self.space, cube, seeds)

    def assign(self, cube: Tensor | DegradationParameters) -> Tensor:
        """The task of each row, `[B]`, from a cube `[B, 38]` or the parameters made from it."""
        if isinstance(cube, Tensor):
            cube = parameters_from_cube(self.space, cube, torch.zeros(len(cube), dtype=torch.long))
        blur, noise = effective_strength(cube)
        return (blur >= self.blur_median).long() + 2 * (noise >= self.noise_median).long()

    def describe(self) -> str:
        """The definition of every task in words, one line per task."""
        blur = f"effective blur {{}} {self.blur_median:.3f} HR pixels"
        noise = f"effective luma noise {{}} {255 * self.noise_median:.2f}/255"
        return "\n".join(
            f"{name} (p = {float(share):.3f}): {blur.format(*b)} and {noise.format(*n)}"
            for (name, share), (n, b) in zip(
                self.masses.items(),
                ((n, b) for n in ("<", "\u2265") for b in ("<", "\u2265")),
                strict=True,
            )
        )
