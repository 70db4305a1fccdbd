"""The picture: time per sample of every operator and of the whole, beside the floor."""

from __future__ import annotations

from pathlib import Path

from benchmarks.degradation.rows import LIBRARIES, Measured, Shown, digits

COLOURS = {"mtlweight": "tab:blue", "BasicSR": "tab:orange", "kornia": "tab:green"}
TITLES = {"cpu": "one CPU thread", "cuda": "GPU"}


def plot(measured: Measured, path: Path) -> None:
    """Draws bars of milliseconds per sample, a panel for each device and size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels: dict[tuple[str, int], list[Shown]] = {}
    for device in TITLES:
        for unit in measured.units(device):
            if unit.operator not in ("kernels", "step"):  # too small to see; no part of it
                panels.setdefault((device, unit.size), []).append(unit)
    if not panels:
        return
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.5 * len(panels), 4.6), squeeze=False, layout="constrained"
    )
    for axis, ((device, size), units) in zip(axes[0], panels.items(), strict=True):
        for place, unit in enumerate(units):
            found = [
                (library, row)
                for library in LIBRARIES
                if (row := measured.find(unit, device, library)) is not None
            ]
            height = 0.8 / len(LIBRARIES)
            for i, (library, row) in enumerate(found):
                at = place + (i - (len(found) - 1) / 2) * height
                milliseconds = row["per_sample"] * 1e3
                axis.barh(at, milliseconds, height, color=COLOURS[library])
                axis.annotate(
                    f" {digits(milliseconds)}", (milliseconds, at), va="center", fontsize=7
                )
            if found and "floor" in found[0][1]:
                least = found[0][1]["floor"] * 1e3
                axis.plot([least, least], [place - 0.45, place + 0.45], color="black", lw=1.5)
        axis.set(xscale="log", xlabel="ms per sample", title=f"{TITLES[device]}, crops of {size}")
        axis.set_yticks(range(len(units)), [unit.operator for unit in units])
        axis.set_ylim(len(units) - 0.4, -0.6)
        axis.margins(x=0.15)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.grid(axis="x", alpha=0.3)
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[name]) for name in LIBRARIES]
    handles.append(plt.Line2D([], [], color="black", lw=1.5))
    figure.legend(
        handles, [*LIBRARIES, "floor"], loc="outside lower center", ncols=4, frameon=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
