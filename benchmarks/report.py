"""Tables, a plot and a summary from the JSON of pytest-benchmark.

    python -m benchmarks.report results/*.json --out results

Figures of later files replace those of earlier ones, so that parts can be measured anew.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from benchmarks.plot import plot
from benchmarks.rows import (
    GROUPS,
    KINDS,
    LIBRARIES,
    TITLES,
    Row,
    Unit,
    by_unit,
    fastest,
    limit,
    read,
)

BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


def baseline_of(unit: Unit) -> str:
    """Returns the limit that the figures of a unit are compared with."""
    return "naive" if unit[2] == "parameters" and unit[0] != "conv" else "plain"


def spread(values: Sequence[float] | None) -> str:
    if values is None:
        return ""
    low, middle, high = values
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def megabytes(row: Row | None) -> str:
    return "" if row is None or row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"


def overview(units: dict[Unit, list[Row]]) -> list[str]:
    """Returns a table with a line for each unit, library and kind."""
    lines = [
        "| problem | T | weights from | library | strategies | x plain | x naive T | MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (problem, tasks, group), rows in units.items():
        for name in ("plain", "naive", "kept"):
            row = limit(rows, name)
            if row is not None:
                naive = spread(row.get("ratio_to_naive"))
                lines.append(
                    f"| {problem} | {tasks} | | *{name}* | | {spread(row['ratio_to_plain'])} "
                    f"| {naive} | {megabytes(row)} |"
                )
        groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in rows:
            if row["library"] != "limit" and not row["route"].startswith("chunk"):
                kind = KINDS.get(row["kind"], "") if row["library"] == "mtlweight" else row["route"]
                groups[row["library"], kind].append(row)
        for library, kind in sorted(groups, key=lambda side: (LIBRARIES.index(side[0]), side[1])):
            found = groups[library, kind]
            what = f"{group}: {kind}" if kind else group
            cells = [_range(found, "ratio_to_plain"), _range(found, "ratio_to_naive")]
            peaks = [row["peak_bytes"] / 1e6 for row in found]
            lines.append(
                f"| {problem} | {tasks} | {what} | {library} | {len(found)} | {' | '.join(cells)} "
                f"| {median(peaks):.0f} ({min(peaks):.0f}–{max(peaks):.0f}) |"
            )
    return lines


def _range(rows: Sequence[Row], ratio: str) -> str:
    if any(ratio not in row for row in rows):
        return ""
    middles = [row[ratio][1] for row in rows]
    return f"{median(middles):.2f} ({min(middles):.2f}–{max(middles):.2f})"


def table(unit: Unit, rows: list[Row]) -> list[str]:
    """Returns the table of a unit, a strategy a line, the libraries side by side."""
    baseline = baseline_of(unit)
    plain, naive, kept = (limit(rows, name) for name in ("plain", "naive", "kept"))
    lines = [f"### {TITLES[unit[0]]}: {unit[1]} tasks, {GROUPS[unit[2]]}", ""]
    if plain is not None:
        lines.append(
            f"A plain step takes {plain['median'] * 1e3:.1f} ms and {megabytes(plain)} MB; "
            f"T x P numbers are {unit[1] * plain['shared_size'] * 4 / 1e6:.1f} MB."
        )
    if naive is not None:
        lines.append(
            f"The naive limit is {spread(naive['ratio_to_plain'])} plain steps, "
            f"{megabytes(naive)} MB."
        )
    if kept is not None:
        lines.append(f"With T x P numbers kept it is {spread(kept['ratio_to_naive'])} of that.")
    sides = [library for library in LIBRARIES if any(r["library"] == library for r in rows)]
    head = [f"{library}, x {baseline} | MB" for library in sides]
    lines += ["", f"| strategy | {' | '.join(head)} |", "| --- |" + " --- | --- |" * len(sides)]
    best = {(row["library"], row["key"]): row for row in fastest(rows)}
    names = {row["key"]: row["strategy"] for row in sorted(rows, key=_theirs_first)}
    for key in sorted({key for library, key in best if library != "limit"}):
        cells = []
        for library in sides:
            row = best.get((library, key))
            cells.append(_cell(row, baseline) if row else "")
            cells.append(megabytes(row))
        lines.append(f"| {names[key]} | {' | '.join(cells)} |")
    for row in rows:
        if row["route"].startswith("chunk"):
            cells = [_cell(row, baseline), megabytes(row), *["", ""] * (len(sides) - 1)]
            lines.append(f"| {row['strategy']}, {row['route']} | {' | '.join(cells)} |")
    return [*lines, ""]


def _theirs_first(row: Row) -> int:
    return -LIBRARIES.index(row["library"]) if row["library"] in LIBRARIES else -9


def _cell(row: Row, baseline: str) -> str:
    route = "" if row["library"] == "mtlweight" or not row["route"] else f" {row['route'][0]}"
    return spread(row.get(f"ratio_to_{baseline}")) + route


def refusals(refused: Iterable[Row]) -> list[str]:
    """Returns who could not run, and why."""
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for row in refused:
        where = f"{row['problem']}, T={row['tasks']}"
        groups[row["library"], row["strategy"], row["reason"]].append(where)
    lines = ["| library | strategy | where | why |", "| --- | --- | --- | --- |"]
    for (library, strategy, reason), places in sorted(groups.items()):
        where = "; ".join(dict.fromkeys(places))
        why = reason.replace("|", "\\|")
        lines.append(f"| {library} | {strategy} | {where} | {why} |")
    return lines if groups else ["All of them run."]


def figures(rows: list[Row], refused: list[Row], machine: Row) -> str:
    """Returns everything measured, in Markdown."""
    units = by_unit(rows)
    cpu = machine.get("cpu", {}).get("brand_raw", machine.get("machine", ""))
    rounds = sorted({row["rounds"] for row in rows})
    lines = [
        f"Measured on {cpu}, Python {machine.get('python_version', '')}, "
        f"{rounds[0]} to {rounds[-1]} rounds.",
        "",
        "## In short",
        "",
        "The median over strategies of their medians, and the least and the most.",
        "",
        *overview(units),
        "",
        "## Every figure",
        "",
        "Medians over rounds, and quartiles. Of torchjd the fastest of three ways is shown: "
        "s(equential), v(ectorised) or the Gram e(ngine).",
        "",
    ]
    for unit, found in units.items():
        lines += table(unit, found)
    return "\n".join([*lines, "## Who could not run", "", *refusals(refused), ""])


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    os.replace(new, path)


def write_between(page: Path, begin: str, end: str, text: str) -> None:
    """Puts a text in the place of what a page has between two marks."""
    before, rest = page.read_text().split(begin)
    write(page, f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="JSON files of pytest-benchmark")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    parser.add_argument("--docs", type=Path, help="the folder of docs/performance.md, to write to")
    given = parser.parse_args(arguments)
    rows, refused, machine = read(given.files)
    text = figures(rows, refused, machine)
    write(given.out / "report.md", text)
    write(given.out / "summary.json", json.dumps({"rows": rows, "cannot_run": refused}, indent=1))
    plot(rows, given.out / "performance.png")
    if given.docs is not None:
        write_between(given.docs / "performance.md", BEGIN, END, text)
        plot(rows, given.docs / "pictures" / "performance.png")
    print(given.out / "report.md")


if __name__ == "__main__":
    main()
