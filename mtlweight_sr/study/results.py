"""From runs to tables: means and deviations over seeds, gains, marks, CSV and JSON."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from mtlweight_sr.study.arms import Arm
from mtlweight_sr.training import IntervalRecord

__all__ = ["AVERAGE", "Cell", "Row", "RunResult", "Table", "metric_table", "to_csv"]

AVERAGE = "average"
GAIN = "gain"
DIGITS: Mapping[str, int] = {"psnr": 2, "ssim": 4, "lpips": 4, "weight": 3}
"""Decimals in print."""
TITLES: Mapping[str, str] = {"psnr": "PSNR-Y (dB) ↑", "ssim": "SSIM-Y ↑", "lpips": "LPIPS ↓"}

COLUMNS = (
    *("strategy", "spend", "seed", "interval", "task"),
    *("psnr", "ssim", "lpips", "weight", "quota"),
)
"""Columns of the long form."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunResult(_Record):
    """One finished run.

    Attributes:
        arm: strategy and spending.
        seed: its seed.
        history: its intervals.
        identity: everything that determined it.
    """

    arm: Arm
    seed: int
    history: tuple[IntervalRecord, ...]
    identity: dict[str, Any]


class Cell(_Record):
    """A mean over seeds.

    Attributes:
        mean: the mean.
        deviation: the sample standard deviation over seeds; None with one seed.
        mark: `"best"` or `"second"` of its column, as far as the printed decimals tell.
    """

    mean: float
    deviation: float | None = None
    mark: Literal["", "best", "second"] = ""

    def text(self, digits: int, *, signed: bool = False) -> str:
        """The cell as it is printed, without its mark; one seed has no deviation."""
        mean = f"{self.mean:{'+' if signed else ''}.{digits}f}"
        return mean if self.deviation is None else f"{mean} ± {self.deviation:.{digits}f}"


class Row(_Record):
    """A line of a table.

    Attributes:
        label: what it is of.
        ranked: whether it takes part in the ranking.
        cells: by column.
    """

    label: str
    ranked: bool
    cells: dict[str, Cell]


class Table(_Record):
    """One metric: a row per arm, a column per task, their average, and the gain over the baseline.

    Attributes:
        metric: `"psnr"`, `"ssim"` or `"lpips"`.
        columns: the tasks, the average, and the gain in it where there is a baseline.
        rows: those that are not ranked last.
    """

    metric: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """The metric, its unit and direction."""
        return TITLES[self.metric]

    def mark(self, row: Row, column: str) -> str:
        """The mark of a cell."""
        return row.cells[column].mark if column in row.cells else ""

    def text(self, row: Row, column: str) -> str:
        """A cell as it is printed, without its mark; empty where there is none."""
        if column not in row.cells:
            return ""
        cell = row.cells[column]
        return (
            cell.text(DIGITS[self.metric], signed=column == GAIN)
            if row.ranked
            else (f"{cell.mean:.{DIGITS[self.metric]}f}")
        )


Values = Mapping[str, float]
"""A metric by task."""


def metric_table(
    metric: str,
    tasks: Sequence[str],
    values: Mapping[Arm, Mapping[int, Values]],
    baseline: Arm | None,
    others: Mapping[str, Values],
) -> Table:
    """Makes the table of a metric.

    Args:
        metric: `"psnr"`, `"ssim"` or `"lpips"`.
        tasks: the names of the tasks.
        values: the metric by arm, seed and task.
        baseline: what gains are measured against, seed by seed; None leaves them out.
        others: rows that are not ranked, by label.
    """
    columns = [*tasks, AVERAGE]
    rows = []
    base = values.get(baseline) if baseline is not None else None
    for arm, by_seed in values.items():
        full = {seed: {**found, AVERAGE: _mean(found, tasks)} for seed, found in by_seed.items()}
        cells = {column: _cell([found[column] for found in full.values()]) for column in columns}
        if base is not None and arm != baseline and (paired := [s for s in full if s in base]):
            cells[GAIN] = _cell([full[s][AVERAGE] - _mean(base[s], tasks) for s in paired])
        rows.append(Row(label=str(arm), ranked=True, cells=cells))
    if base is not None:
        columns.append(GAIN)
    rows = _marked(rows, columns, DIGITS[metric], higher=metric != "lpips")
    for label, found in others.items():
        cells = {task: Cell(mean=found[task]) for task in tasks}
        cells[AVERAGE] = Cell(mean=_mean(found, tasks))
        rows.append(Row(label=label, ranked=False, cells=cells))
    return Table(metric=metric, columns=tuple(columns), rows=tuple(rows))


def _mean(values: Values, tasks: Sequence[str]) -> float:
    return sum(values[task] for task in tasks) / len(tasks)


def _cell(values: list[float]) -> Cell:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Cell(mean=statistics.fmean(values), deviation=deviation)


def _marked(rows: list[Row], columns: Sequence[str], digits: int, *, higher: bool) -> list[Row]:
    """Marks the best and the second best of each column; equal in print is equal."""
    marks: dict[tuple[int, str], Literal["best", "second"]] = {}
    for column in columns:
        # A gain is a difference of averages: it would only repeat their marks.
        if column == GAIN:
            continue
        printed = [round(row.cells[column].mean, digits) for row in rows]
        ranking = sorted(set(printed), reverse=higher)
        if len(ranking) < 2:
            continue
        for i, value in enumerate(printed):
            if value == ranking[0]:
                marks[i, column] = "best"
            elif value == ranking[1] and printed.count(ranking[0]) == 1:
                marks[i, column] = "second"
    return [
        row.model_copy(
            update={
                "cells": {
                    column: cell.model_copy(update={"mark": marks.get((i, column), "")})
                    for column, cell in row.cells.items()
                }
            }
        )
        for i, row in enumerate(rows)
    ]


def to_csv(
    results: Sequence[RunResult],
    tasks: Sequence[str],
    lpips: Mapping[Arm, Mapping[int, Values]] | None = None,
) -> str:
    """The long form: one line per run, interval and task, with floats that read back exactly.

    Args:
        results: the runs.
        tasks: the names of the tasks.
        lpips: by arm, seed and task, at the end of each run; other intervals leave it empty.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for result in results:
        distances = (lpips or {}).get(result.arm, {}).get(result.seed, {})
        for record in result.history:
            last = record is result.history[-1]
            for task in tasks:
                row = [result.arm.strategy, result.arm.spend, result.seed, record.interval, task]
                row += [record.psnr[task], record.ssim[task]]
                row += [distances.get(task, "") if last else ""]
                writer.writerow([*row, record.weights[task], record.counts[task]])
    return stream.getvalue()
