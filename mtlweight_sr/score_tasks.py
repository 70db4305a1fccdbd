"""Tasks told apart by effective strength instead of by single parameters."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from mtlweight_sr.degradation.parameters import DegradationParameters
from mtlweight_sr.degradation.sampling import draw_rows, parameters_from_cube
from mtlweight_sr.degradation.space import DegradationSpace
from mtlweight_sr.degradation.strength import effective_blur, effective_noise

__all__ = ["ScoreTaskSpace", "checked_task_ids"]

_ATTEMPTS = 4
_CALIBRATION_ROWS = 16384
_CALIBRATION_STREAM = 2**32 - 1


def checked_task_ids(task_ids: Tensor, tasks: int, samples: int) -> Tensor:
    """Task ids `[samples]` on the CPU in int64, refused where they are no places among `tasks`."""
    if task_ids.is_floating_point() or task_ids.is_complex() or task_ids.dtype == torch.bool:
        raise TypeError(
            f"expected `task_ids` of integers, got {task_ids.dtype}; write task_ids.long()"
        )
    task_ids = task_ids.cpu().long()
    if task_ids.shape != (samples,):
        raise ValueError(
            f"expected one of `task_ids` per id, got shape {list(task_ids.shape)} for {samples} "
            f"ids; write torch.full(({samples},), task)"
        )
    if samples and not (int(task_ids.min()) >= 0 and int(task_ids.max()) < tasks):
        raise ValueError(
            f"expected `task_ids` in [0, {tasks}), got {int(task_ids.min())} to "
            f"{int(task_ids.max())}; write places in `names`"
        )
    return task_ids


def _scores(parameters: DegradationParameters) -> tuple[Tensor, Tensor]:
    return effective_blur(parameters), effective_noise(parameters)


@lru_cache(maxsize=8)
def _calibrate(space: DegradationSpace) -> tuple[float, float, tuple[Fraction, ...]]:
    """Medians of both scores, and the share of each of the four tasks, over fixed rows."""
    cube, _, seeds = draw_rows(range(_CALIBRATION_ROWS), 0, _CALIBRATION_STREAM)
    rows = parameters_from_cube(space, cube, seeds)
    # In parts: all kernels at once would take gigabytes.
    scores = [_scores(rows[i : i + 2048]) for i in range(0, len(rows), 2048)]
    blur, noise = (torch.cat(some) for some in zip(*scores, strict=True))
    # The middle of an even number of values: the mean of the two middle ones leaves exactly half on
    # either side.
    middle = [
        float(v.sort().values[len(v) // 2 - 1 : len(v) // 2 + 1].mean()) for v in (blur, noise)
    ]
    tasks = (blur >= middle[0]).long() + 2 * (noise >= middle[1]).long()
    shares = tuple(Fraction(int(n), len(tasks)) for n in torch.bincount(tasks, minlength=4))
    return middle[0], middle[1], shares


class ScoreTaskSpace:
    """Four tasks cut at the medians of effective blur and noise; used like a `TaskSpace`.

    The scores (`effective_blur`, `effective_noise`) follow the image through both stages, so these
    tasks differ more in what the images look like than boxes do. They are no boxes: rows of
    parameters are drawn from the whole space until one belongs to the task, which is exact; no
    image is ever rejected.

    The medians and `masses` are measured once on 16384 rows of a fixed seed, hence the same on
    every machine; a mass is known to a standard error of 0.004.

    Args:
        space: The distribution.

    Raises:
        ValueError: A space on which one of the tasks has no probability, for example without noise.
    """

    names = ("mild", "blur", "noise", "severe")

    def __init__(self, space: DegradationSpace) -> None:
        self.space = space
        self.blur_median, self.noise_median, self._shares = _calibrate(space)
        if 0 in self._shares:
            raise ValueError(
                "expected a space in which both effective blur and noise vary, got shares "
                f"{self._shares} for {self.names}; write TaskSpace with tasks of your own"
            )

    @property
    def masses(self) -> dict[str, Fraction]:
        """Natural probability of every task, as measured at construction; they sum to 1."""
        return dict(zip(self.names, self._shares, strict=True))

    def draw(
        self, task_ids: Tensor, ids: Sequence[int] | Tensor, seed: int, stream: int = 0
    ) -> DegradationParameters:
        """Parameters of samples of given tasks; arguments and errors as in `TaskSpace.draw`.

        A sample is the first row of its id's own sequence that belongs to its task.
        """
        cube, _, seeds = draw_rows(ids, seed, stream)
        task_ids = checked_task_ids(task_ids, len(self.names), len(seeds))
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
            fits = self.assign(rows.flatten(0, 1)).view(-1, _ATTEMPTS) == task_ids[pending, None]
            first, found = fits.byte().argmax(1), fits.any(1)
            done = found.nonzero()[:, 0]
            cube[pending[done]] = rows[done, first[done]]
            seeds[pending[done]] = keys[done, first[done]]
            pending = pending[~found]
        return parameters_from_cube(self.space, cube, seeds)

    def draw_natural(
        self, ids: Sequence[int] | Tensor, seed: int, stream: int = 0
    ) -> DegradationParameters:
        """Parameters from the whole space; `assign` tells the task of each row."""
        cube, _, seeds = draw_rows(ids, seed, stream)
        return parameters_from_cube(self.space, cube, seeds)

    def assign(self, cube: Tensor | DegradationParameters) -> Tensor:
        """The task of each row, `[B]`, from a cube `[B, 38]` or the parameters made from it."""
        if isinstance(cube, Tensor):
            cube = parameters_from_cube(self.space, cube, torch.zeros(len(cube), dtype=torch.long))
        blur, noise = _scores(cube)
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
