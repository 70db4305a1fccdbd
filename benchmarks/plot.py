"""The picture: step time and peak memory against the number of tasks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks.rows import KINDS, LIBRARIES, TITLES, Row, Unit, by_unit, fastest

COLOURS = {
    "torchjd": "tab:orange",
    "LibMTL": "tab:green",
    "mtlweightgradient": "tab:cyan",
    "mtlweightgram": "tab:blue",
    "features": "tab:purple",
}


def plot(rows: list[Row], path: Path) -> None:
    """Draws step time and peak memory against T, per library, with the limits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, ScalarFormatter

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
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(ScalarFormatter())
            axis.minorticks_off()
            axis.set_title(TITLES[problem], fontsize=10)
            axis.grid(alpha=0.3)
    handles = grid[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _lines(
    units: dict[Unit, list[Row]], problem: str, times: bool
) -> Iterator[tuple[str, str, str, dict[int, list[float]]]]:
    """Yields label, line, colour and values by T of what is drawn for a problem."""

    def values(group: str, **wanted: str) -> dict[int, list[float]]:
        found: dict[int, list[float]] = {}
        for (name, tasks, of), rows in units.items():
            kept = [
                row["ratio_to_plain"][1] if times else row["peak_bytes"] / 1e6
                for row in fastest(rows)
                if all(row[key] == value for key, value in wanted.items())
            ]
            if (name, of) == (problem, group) and kept:
                found[tasks] = kept
        return found

    drawn = [
        ("limit: plain", ":", "black", values("parameters", library="limit", strategy="plain")),
        ("limit: naive T", "--", "black", values("parameters", library="limit", strategy="naive")),
    ]
    for library in LIBRARIES[1:]:
        found = values("parameters", library=library)
        drawn.append((library, "-o", COLOURS[library], found))
    ours = LIBRARIES[0]
    for kind, line in (("gradient", "-s"), ("gram", "-o")):
        found = values("parameters", library=ours, kind=kind)
        drawn.append((f"{ours}, reads {KINDS[kind]}", line, COLOURS[ours + kind], found))
    on_features = values("features", library=ours)
    drawn.append((f"{ours}, on features", "-^", COLOURS["features"], on_features))
    yield from (line for line in drawn if line[3])
