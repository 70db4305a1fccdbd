"""What pytest-benchmark wrote, as rows: one for each contender on each problem."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Unit = tuple[str, int, str]

LIBRARIES = ("mtlweight", "torchjd", "LibMTL")
KINDS = {
    "gram": "the Gram matrix",
    "gradient": "the gradients",
    "more batches": "further batches too",
}
TITLES = {
    "mlp": "Perceptron, 1M parameters, batch of 256",
    "resnet18": "ResNet-18, batch of 32 images of 64 x 64",
    "conv": "Convolutions, each task with 4 images of 32 x 32 of its own",
}
GROUPS = {
    "losses": "strategies that read losses or metrics",
    "features": "gradients of the shared features",
    "parameters": "gradients of the shared parameters",
}


def read(paths: Iterable[Path]) -> tuple[list[Row], list[Row], Row]:
    """Returns a row for each contender measured, those that can't run, and what ran them."""
    rows: dict[tuple[Any, ...], Row] = {}
    refused: dict[tuple[Any, ...], Row] = {}
    machine: Row = {}
    for path in paths:
        data = json.loads(path.read_text())
        machine = data["machine_info"]
        for benchmark in data["benchmarks"]:
            info = benchmark["extra_info"]
            if "strategy" not in info:  # the degradation's
                continue
            row = {k: v for k, v in info.items() if not k.startswith("seconds_of_")}
            row |= {"median": benchmark["stats"]["median"], "rounds": benchmark["stats"]["rounds"]}
            rows[_identity(row)] = row
            refused.pop(_identity(row), None)
        for row in (row for row in data["cannot_run"] if "strategy" in row):
            refused[_identity(row)] = row
            rows.pop(_identity(row), None)
    return list(rows.values()), list(refused.values()), machine


def _identity(row: Row) -> tuple[Any, ...]:
    names = ("problem", "tasks", "group", "library", "strategy", "route")
    return tuple(row[name] for name in names)


def by_unit(rows: Iterable[Row]) -> dict[Unit, list[Row]]:
    units: dict[Unit, list[Row]] = defaultdict(list)
    for row in rows:
        units[row["problem"], row["tasks"], row["group"]].append(row)
    order = [*TITLES], [*GROUPS]
    return dict(
        sorted(
            units.items(), key=lambda u: (order[0].index(u[0][0]), order[1].index(u[0][2]), u[0][1])
        )
    )


def limit(rows: Sequence[Row], name: str) -> Row | None:
    return next((r for r in rows if r["library"] == "limit" and r["strategy"] == name), None)


def fastest(rows: Iterable[Row]) -> list[Row]:
    """Returns one row for each strategy of each library: that of its fastest way."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = row["library"], row["key"]
        if not row["route"].startswith("chunk") and (
            key not in best or row["ratio_to_plain"][1] < best[key]["ratio_to_plain"][1]
        ):
            best[key] = row
    return list(best.values())
