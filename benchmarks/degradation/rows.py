"""What pytest-benchmark wrote of the degradation, as rows: one for each contender of a unit."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.degradation.units import UNITS

Row = dict[str, Any]
LIBRARIES = ("mtlweight", "BasicSR", "kornia")
ORDER = tuple(dict.fromkeys(unit.operator for unit in UNITS))


class Shown(NamedTuple):
    operator: str
    size: int
    batch: int


@dataclass(frozen=True)
class Measured:
    """The contents of the files.

    Attributes:
        rows: Of everything measured.
        refused: Of what could not run, with the reason.
        machine: What ran it.
        agreement: What `benchmarks.degradation.agreement` wrote, if it is among the files.
    """

    rows: list[Row]
    refused: list[Row]
    machine: Row
    agreement: Row | None

    def find(self, unit: Shown, device: str, library: str, route: str = "") -> Row | None:
        """Returns the row of a contender, None if it was not measured."""
        wanted = (*unit, device, library, route)
        return next((row for row in self.rows if _identity(row) == wanted), None)

    def units(self, device: str) -> list[Shown]:
        """Returns operator, size and batch of what was measured on a device, in order."""
        found = {Shown(*_identity(row)[:3]) for row in self.rows if row["device"] == device}
        return sorted(found, key=lambda unit: (ORDER.index(unit[0]), -unit[1], unit[2]))


def read(paths: Iterable[Path]) -> Measured:
    """Returns what the files hold; later ones replace figures of earlier ones."""
    rows: dict[tuple[Any, ...], Row] = {}
    refused: dict[tuple[Any, ...], Row] = {}
    machine: Row = {}
    agreement = None
    for path in paths:
        data = json.loads(path.read_text())
        if "agreement" in data:
            agreement = data
            continue
        machine = data["machine_info"]
        for benchmark in data["benchmarks"]:
            row = benchmark["extra_info"]
            if "operator" in row:
                row["rounds"] = benchmark["stats"]["rounds"]
                rows[_identity(row)] = row
                refused.pop(_identity(row), None)
        for row in data["cannot_run"]:
            if "operator" in row:
                refused[_identity(row)] = row
                rows.pop(_identity(row), None)
    return Measured(list(rows.values()), list(refused.values()), machine, agreement)


def _identity(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("operator", "size", "batch", "device", "library", "route"))


def digits(value: float) -> str:
    """Returns a positive number in three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
