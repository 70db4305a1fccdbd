"""A table of the ways to get crops, from the JSON of pytest-benchmark.

python -m benchmarks.feeding.report results/feeding.json --docs docs
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import write_between

BEGIN, END = "<!-- feeding figures -->", "<!-- end of feeding figures -->"
CORES = 16


def rows_of(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Returns what was measured; later files replace figures of earlier ones."""
    rows = {}
    for path in paths:
        for benchmark in json.loads(path.read_text())["benchmarks"]:
            row = benchmark["extra_info"]
            if "feeding" in row:
                rows[row["files"], row["feeding"], row["workers"]] = row
    return list(rows.values())


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns a line for each way: CPU time of an item, and items per second."""
    lines = [
        f"| files | way | workers | CPU ms each | per second and core | on {CORES} cores "
        "| per second, here |",
        "| --- " * 7 + "|",
    ]
    for row in rows:
        rate = 1 / row["cpu_per_item"]
        way = row["feeding"]
        whole = way.startswith("decode")
        # One process cuts from the device's memory; more cores don't help it.
        many = "" if way == "device" else f"{CORES * rate:,.0f}"
        cells = [
            row["files"],
            way if whole else f"cache = {way}",
            "" if whole else str(row["workers"]),
            f"{row['cpu_per_item'] * 1e3:.3g}",
            f"{rate:,.0f}",
            many,
            f"{1 / row['wall_per_item']:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.feeding.report")
    parser.add_argument("files", nargs="+", type=Path, help="JSON files of pytest-benchmark")
    parser.add_argument("--docs", type=Path, help="the folder of docs/performance.md, to write to")
    given = parser.parse_args(arguments)
    text = table(rows_of(given.files))
    if given.docs is not None:
        write_between(given.docs / "performance.md", BEGIN, END, text)
    print(text)


if __name__ == "__main__":
    main()
