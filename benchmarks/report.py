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
from typing import Any

Row = dict[str, Any]
Unit = tuple[str, int, str]

LIBRARIES = ("mtlweight", "torchjd", "LibMTL")
COLOURS = {"mtlweight": "tab:blue", "torchjd": "tab:orange", "LibMTL": "tab:green"}
KINDS = {
    "gram": "the Gram matrix",
    "gradient": "the gradients",
    "more batches": "further batches too",
}
TITLES = {
    "mlp": "Perceptron, 1M parameters, batch of 256",
    "resnet18": "ResNet-18, batch of 32 images of 64 x 64",
    "conv": "Convolutions, each task with 8 images of 48 x 48 of its own",
}
GROUPS = {
    "losses": "strategies that read losses or metrics",
    "features": "gradients of the shared features",
    "parameters": "gradients of the shared parameters",
}
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


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
            row = {k: v for k, v in info.items() if not k.startswith("seconds_of_")}
            row |= {"median": benchmark["stats"]["median"], "rounds": benchmark["stats"]["rounds"]}
            rows[_identity(row)] = row
            refused.pop(_identity(row), None)
        for row in data["cannot_run"]:
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
        for name in ("plain", "naive"):
            row = limit(rows, name)
            if row is not None:
                naive = spread(row.get("ratio_to_naive"))
                lines.append(
                    f"| {problem} | {tasks} | | *{name}* | | {spread(row['ratio_to_plain'])} "
                    f"| {naive} | {megabytes(row)} |"
                )
        groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in fastest(rows):
            if row["library"] != "limit":
                kind = KINDS.get(row["kind"], "") if row["library"] == "mtlweight" else ""
                groups[row["library"], kind].append(row)
        for (library, kind), found in sorted(
            groups.items(), key=lambda g: LIBRARIES.index(g[0][0])
        ):
            what = group if group != "parameters" or not kind else f"{group}: {kind}"
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
    plain, naive = limit(rows, "plain"), limit(rows, "naive")
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


def plot(rows: list[Row], path: Path) -> None:
    """Draws step time and peak memory against T, per library, with the limits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    units = by_unit(rows)
    counts: dict[str, list[int]] = defaultdict(list)
    for problem, tasks, group in units:
        if group == "parameters":
            counts[problem].append(tasks)
    drawn = [problem for problem, found in counts.items() if len(found) > 1]
    if not drawn:
        return
    figure, grid = plt.subplots(
        len(drawn), 2, figsize=(10, 4 * len(drawn)), squeeze=False, layout="constrained"
    )
    for axes, problem in zip(grid, drawn, strict=True):
        ticks = sorted(counts[problem])
        for axis, label in zip(axes, ("step time, x plain", "peak memory, MB"), strict=True):
            for name, line, colour, values in _lines(units, problem, label.startswith("step")):
                xs = sorted(values)
                axis.plot(xs, [median(values[t]) for t in xs], line, color=colour, label=name)
                if max(map(len, values.values())) > 1:
                    low, high = ([f(values[t]) for t in xs] for f in (min, max))
                    axis.fill_between(xs, low, high, color=colour, alpha=0.12, linewidth=0)
            axis.set(xscale="log", yscale="log", xlabel="tasks T", ylabel=label, xticks=ticks)
            axis.xaxis.set_major_formatter(ScalarFormatter())
            axis.yaxis.set_major_formatter(ScalarFormatter())
            axis.minorticks_off()
            axis.set_title(TITLES[problem], fontsize=10)
            axis.grid(alpha=0.3)
        axes[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _lines(
    units: dict[Unit, list[Row]], problem: str, times: bool
) -> Iterable[tuple[str, str, str, dict[int, list[float]]]]:
    """Yields label, line, colour and values by T of what is drawn for a problem."""

    def values(group: str, library: str, kind: str | None = None) -> dict[int, list[float]]:
        found: dict[int, list[float]] = {}
        for (name, tasks, of), rows in units.items():
            if (name, of) != (problem, group):
                continue
            kept = [
                row["ratio_to_plain"][1] if times else row["peak_bytes"] / 1e6
                for row in fastest(rows)
                if row["library"] == library and (kind is None or row["kind"] == kind)
                if library != "limit" or row["strategy"] == kind_of_limit
            ]
            if kept:
                found[tasks] = kept
        return found

    for kind_of_limit, line in (("plain", "k:"), ("naive", "k--")):
        found = values("parameters", "limit")
        if found:
            yield f"limit: {kind_of_limit}", line, "black", found
    kind_of_limit = ""
    for library in LIBRARIES:
        kinds = ("gram", "gradient") if library == "mtlweight" else (None,)
        for kind in kinds:
            found = values("parameters", library, kind)
            if found:
                name = library if kind is None else f"{library}, reads {KINDS[kind]}"
                yield name, "-o" if kind != "gradient" else "-s", COLOURS[library], found
    found = values("features", "mtlweight")
    if found:
        yield "mtlweight, on features", "-^", "tab:purple", found


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    os.replace(new, path)


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
        page = given.docs / "performance.md"
        before, rest = page.read_text().split(BEGIN)
        after = rest.split(END)[1]
        write(page, f"{before}{BEGIN}\n{text}\n{END}{after}")
        plot(rows, given.docs / "pictures" / "performance.png")
    print(given.out / "report.md")


if __name__ == "__main__":
    main()
