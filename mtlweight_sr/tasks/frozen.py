"""Tasks that are points: fixed rows of parameters, as where degradations are sampled once."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Self

import torch
from pydantic import TypeAdapter
from torch import Tensor

from mtlweight_sr.degradation.mixture import Space
from mtlweight_sr.degradation.parameters import DegradationParameters
from mtlweight_sr.degradation.sampling import draw_parameters, draw_rows
from mtlweight_sr.degradation.space import exact
from mtlweight_sr.replay import recorded, replayed
from mtlweight_sr.tasks.draws import TaskDraws, TaskIds, checked_task_ids
from mtlweight_sr.training_files import write_atomically

__all__ = ["FrozenTasks"]

_FORMAT = 1
_STREAM = 2**32 - 3


class FrozenTasks(TaskDraws):
    """Tasks of explicit rows of parameters, each a point of the space or a few of them.

    A sample of a task has the parameters of one of its rows, drawn by their probabilities, and
    noise of its own. Points have no volume: `masses` are what is given here, and `draw_natural`
    still draws from the whole space.

    Args:
        space: The distribution that the rows were taken from.
        rows: The rows, told apart by their `cube`; their seeds are not read.
        names: The task of each row; rows of one name make one task, in the order of first
            appearance. By default each row is a task, "point1" and so on.
        probabilities: The natural probability of each row; 1/n by default.

    Attributes:
        space: The distribution.
        rows: The rows, those of a task together.
        names: Names of the tasks.
        masses: Natural probability of every task, exact; they sum to 1.

    Raises:
        ValueError: No rows, rows of another scale than the space's, not one name or probability per
            row, probabilities that are not positive or don't sum to 1, or a row in two tasks.

    Source: tasks as sampled degradations, alone or in groups: Zhang et al., TGSR (NeurIPS 2023).
    """

    def __init__(
        self,
        space: Space,
        rows: DegradationParameters,
        *,
        names: Sequence[str] | None = None,
        probabilities: Sequence[float | Fraction] | None = None,
    ) -> None:
        _check_rows(space, rows)
        shares = _checked_probabilities(probabilities, len(rows))
        every = _checked_names(names, len(rows))
        self.space = space
        self.names = tuple(dict.fromkeys(every))
        tasks = [self.names.index(name) for name in every]
        order = sorted(range(len(rows)), key=tasks.__getitem__)
        self.rows = rows[torch.tensor(order)].to("cpu")
        self.probabilities = tuple(shares[i] for i in order)
        self._task = torch.tensor([tasks[i] for i in order])
        members = [[shares[i] for i in order if tasks[i] == t] for t in range(len(self.names))]
        self.masses: Mapping[str, Fraction] = {
            name: sum(some, Fraction(0)) for name, some in zip(self.names, members, strict=True)
        }
        self._last = torch.tensor(
            [
                t + float(done / sum(some))
                for t, some in enumerate(members)
                for done in itertools.accumulate(some)
            ],
            dtype=torch.float64,
        )
        self._places = _places(self.rows, self._task.tolist(), self.names)

    @classmethod
    def sample(cls, space: Space, n: int, seed: int) -> Self:
        """`n` point tasks drawn from the whole space.

        Raises:
            ValueError: `n` below 1.
        """
        if n < 1:
            raise ValueError(f"expected `n` >= 1, got {n}; write n=100")
        return cls(space, draw_parameters(space, range(n), seed, _STREAM))

    def draw(
        self, task_ids: TaskIds, ids: Sequence[int] | Tensor, seed: int, stream: int = 0
    ) -> DegradationParameters:
        """Rows of given tasks with noise of their own; arguments and errors as in `TaskSpace`."""
        _, choice, seeds = draw_rows(ids, seed, stream)
        tasks = checked_task_ids(task_ids, self.names, len(seeds))
        row = torch.searchsorted(self._last, tasks + choice, right=True)
        row = torch.minimum(row, torch.searchsorted(self._task, tasks, right=True) - 1)
        return replace(self.rows[row], seed=seeds)

    def assign(self, cube: Tensor | DegradationParameters) -> Tensor:
        """The task of each row, `[B]` int64; -1 for rows that are none of these."""
        found = cube.cube if isinstance(cube, DegradationParameters) else cube
        return torch.tensor([self._places.get(key, -1) for key in _keys(found)], dtype=torch.long)

    def describe(self) -> str:
        """Every task with its rows in words, one line per task."""
        words: dict[str, list[str]] = {name: [] for name in self.names}
        for i, task in enumerate(self._task.tolist()):
            words[self.names[task]].append(self.rows.describe(i))
        return "\n".join(
            f"{name} (p = {self.masses[name]}): {' | '.join(some)}" for name, some in words.items()
        )

    def save(self, path: Path | str) -> None:
        """Writes space, rows and probabilities to a JSON file, whole or not at all."""
        records = [
            {"task": self.names[task], "probability": str(share), "parameters": record}
            for task, share, record in zip(
                self._task.tolist(), self.probabilities, recorded(self.rows), strict=True
            )
        ]
        space = self.space.model_dump(mode="json")
        content = {"format": _FORMAT, "space": space, "rows": records}
        write_atomically(Path(path), (json.dumps(content) + "\n").encode())

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Reads what `save` wrote: the same tasks, bit for bit.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is no file of frozen tasks.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"expected a file of frozen tasks, got {str(path)!r}")
        try:
            content = json.loads(file.read_bytes())
            if content["format"] != _FORMAT:
                raise ValueError(f"its format is {content['format']!r}, not {_FORMAT}")
            space: Space = TypeAdapter(Space).validate_python(content["space"])
            return cls(
                space,
                replayed([row["parameters"] for row in content["rows"]]),
                names=[row["task"] for row in content["rows"]],
                probabilities=[Fraction(row["probability"]) for row in content["rows"]],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"expected a file written by FrozenTasks.save, got {str(path)!r} "
                f"({type(error).__name__}: {error})"
            ) from error


def _check_rows(space: Space, rows: DegradationParameters) -> None:
    if not len(rows):
        raise ValueError("expected at least one of `rows`, got none; write rows[:1]")
    if rows.scale != space.scale:
        raise ValueError(
            f"expected `rows` of the space's scale {space.scale}, got {rows.scale}; draw them from "
            "this space"
        )


def _checked_probabilities(
    probabilities: Sequence[float | Fraction] | None, count: int
) -> list[Fraction]:
    if probabilities is None:
        return [Fraction(1, count)] * count
    shares = [exact(share) for share in probabilities]
    if len(shares) != count:
        raise ValueError(
            f"expected `probabilities` for each of {count} rows, got {len(shares)}; leave them out "
            "for 1/n"
        )
    total = sum(shares, Fraction(0))
    if min(shares) <= 0 or abs(float(total) - 1) > 1e-9:
        raise ValueError(
            f"expected `probabilities` above 0 that sum to 1, got {float(min(shares)):g} to "
            f"{float(max(shares)):g} with sum {float(total):.6g}; leave them out for 1/n"
        )
    return [share / total for share in shares]


def _checked_names(names: Sequence[str] | None, count: int) -> list[str]:
    if names is None:
        return [f"point{i + 1:0{len(str(count))}d}" for i in range(count)]
    if len(names) != count or not all(names):
        raise ValueError(
            f"expected `names` with one name for each of {count} rows, got {list(names)}; leave "
            "them out to number the rows"
        )
    return list(names)


def _keys(cube: Tensor) -> list[bytes]:
    return [row.tobytes() for row in cube.cpu().numpy()]


def _places(
    rows: DegradationParameters, tasks: Sequence[int], names: Sequence[str]
) -> dict[bytes, int]:
    places: dict[bytes, int] = {}
    for i, (key, task) in enumerate(zip(_keys(rows.cube), tasks, strict=True)):
        if places.setdefault(key, task) != task:
            raise ValueError(
                f"expected each of `rows` in one task, got one in {names[places[key]]!r} and "
                f"{names[task]!r}: {rows.describe(i)}; drop it from one of them"
            )
    return places
