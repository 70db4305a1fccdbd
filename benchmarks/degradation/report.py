"""Tables and a picture of the degradation's speed, memory and agreement.

    python -m benchmarks.degradation.report results/*.json --out results

Takes JSON of pytest-benchmark and of `benchmarks.degradation.agreement`; figures of later files
replace those of earlier ones.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.degradation.plot import plot
from benchmarks.degradation.rows import Measured, Row, digits, read
from benchmarks.report import write, write_between

BEGIN, END = "<!-- degradation figures -->", "<!-- end of degradation figures -->"
DEVICES = {"cpu": "One CPU thread", "cuda": "GPU"}


def _milliseconds(row: Row | None) -> str:
    return "" if row is None else digits(row["per_sample"] * 1e3)


def _times(slow: Row | None, fast: Row | None) -> str:
    if slow is None or fast is None:
        return ""
    return digits(slow["per_sample"] / fast["per_sample"])


def speed(measured: Measured, device: str) -> list[str]:
    """Returns the table of a device: milliseconds per sample, a unit a line."""
    lines = [
        "| | crop | batch | mtlweight | compat | BasicSR | kornia | x BasicSR | x kornia | floor "
        "| x floor |",
        "| --- " * 11 + "|",
    ]
    for unit in measured.units(device):
        if unit.operator == "step":
            continue
        ours, compat, basicsr, kornia = (
            measured.find(unit, device, *who)
            for who in (("mtlweight",), ("mtlweight", "compat"), ("BasicSR",), ("kornia",))
        )
        if ours is None:
            continue
        floor = ours.get("floor")
        cells = [
            f"**{unit.operator}**" if ours["whole"] else unit.operator,
            str(unit.size),
            str(unit.batch),
            *map(_milliseconds, (ours, compat, basicsr, kornia)),
            _times(basicsr, ours),
            _times(kornia, ours),
            "" if floor is None else digits(floor * 1e3),
            "" if floor is None else digits(ours["per_sample"] / floor),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def whole(measured: Measured, device: str) -> list[str]:
    """Returns the table of whole degradations: images a second, and memory over the HR batch."""
    lines = [
        "| | crop | batch | | images a second | x BasicSR | peak memory, HR batches |",
        "| --- " * 7 + "|",
    ]
    for unit in measured.units(device):
        rows = [
            row
            for row in measured.rows
            if (row["operator"], row["size"], row["batch"], row["device"]) == (*unit, device)
        ]
        basicsr = measured.find(unit, device, "BasicSR")
        for row in rows:
            if not row["whole"] or row["library"] == "training":
                continue
            name = ", ".join(part for part in (row["library"], row["route"]) if part)
            cells = [
                *map(str, unit),
                name,
                digits(1 / row["per_sample"]),
                _times(basicsr, row),
                f"{row['peak_of_batch']:.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def shares(measured: Measured) -> list[str]:
    """Returns how much of a training step the degradation of its batch takes, on a GPU."""
    steps = [row for row in measured.rows if row["operator"] == "step"]
    networks = [row for row in steps if row["library"] == "training"]
    if not networks:
        return []
    head = " | ".join(f"of a step of {row['route']}" for row in networks)
    lines = [
        f"A batch of {networks[0]['batch']} crops, steps in bfloat16:",
        "",
        f"| | ms a batch | {head} |",
        "| --- " * (2 + len(networks)) + "|",
    ]
    for row in steps:
        if row["library"] != "training":
            name = ", ".join(part for part in (row["library"], row["route"]) if part)
            parts = [f"{row['per_sample'] / other['per_sample']:.1%}" for other in networks]
            batch = digits(row["per_sample"] * row["batch"] * 1e3)
            lines.append(f"| {name} | {batch} | {' | '.join(parts)} |")
    return [*lines, ""]


def agreement(found: Row) -> list[str]:
    """Returns the tables of agreement with BasicSR's functions."""
    lines = [
        "| operator | cases | largest difference | mean | equal 8-bit levels |",
        "| --- " * 5 + "|",
    ]
    for row in found["agreement"]:
        same = "" if row["same"] is None else f"{row['same']:.3%}"
        lines.append(
            f"| {row['operator']} | {row['cases']} | {_small(row['largest'])} "
            f"| {_small(row['mean'])} | {same} |"
        )
    counts = found["level_counts"]
    equal = sum(ours == theirs for ours, theirs in counts)
    one, other = found["distribution"], found["distribution_of_default"]
    lines += [
        "",
        f"Poisson noise counts the same levels in {equal} of {len(counts)} images.",
        "",
        f"Noise included, {one['rows']} rows, the same rows and photographs on both sides, each "
        "with noise of its own. KS is the largest difference of the distribution functions of a "
        "statistic of the LR images, with its p; shift is the mean difference on a row, in "
        "standard deviations over rows, with the p of signed ranks. The energy distance of all "
        f"statistics together has p = {one['p_energy']:.2g} with `compat`, "
        f"{other['p_energy']:.2g} by default.",
        "",
        "| statistic | KS, compat | p | shift | p | KS, default | p | shift | p |",
        "| --- " * 9 + "|",
    ]
    for a, b in zip(one["statistics"], other["statistics"], strict=True):
        cells = [a["statistic"]]
        for side in (a, b):
            cells += [
                f"{side['distance']:.3f}",
                f"{side['p']:.2g}",
                f"{side['shift']:+.3f}",
                f"{side['p_paired']:.2g}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _small(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def refusals(refused: Iterable[Row]) -> list[str]:
    """Returns who could not run, and why."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in refused:
        groups[row["reason"], row["device"]].append(f"{row['operator']} of {row['library']}")
    lines = []
    for (reason, device), names in sorted(groups.items()):
        few = ", ".join(dict.fromkeys(names)) if len(names) < 6 else f"{len(names)} benchmarks"
        lines.append(f"Not run ({device}): {few}: {reason}.")
    return lines


def figures(measured: Measured) -> str:
    """Returns everything measured, in Markdown."""
    cpu = measured.machine.get("cpu", {}).get("brand_raw", measured.machine.get("machine", ""))
    lines = [f"Measured on {cpu}, Python {measured.machine.get('python_version', '')}.", ""]
    for device, title in DEVICES.items():
        if measured.units(device):
            lines += [f"### {title}", "", *speed(measured, device), ""]
            lines += [*whole(measured, device), ""]
    lines += shares(measured)
    if measured.agreement is not None:
        version = measured.agreement["basicsr"]
        lines += [f"### Agreement with BasicSR {version}", "", *agreement(measured.agreement), ""]
    return "\n".join([*lines, *refusals(measured.refused), ""])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.degradation.report", description=__doc__
    )
    parser.add_argument("files", nargs="+", type=Path, help="JSON files")
    parser.add_argument("--out", type=Path, default=Path("results/degradation"))
    parser.add_argument("--docs", type=Path, help="the folder of docs/performance.md, to write to")
    given = parser.parse_args(arguments)
    measured = read(given.files)
    text = figures(measured)
    write(given.out / "report.md", text)
    plot(measured, given.out / "degradation_speed.png")
    if given.docs is not None:
        write_between(given.docs / "performance.md", BEGIN, END, text)
        plot(measured, given.docs / "pictures" / "degradation_speed.png")
    print(given.out / "report.md")


if __name__ == "__main__":
    main()
