"""The plots of an ablation."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from mtlweight_sr.evaluation import bicubic
from mtlweight_sr.study.arms import Arm
from mtlweight_sr.study.results import RunResult
from mtlweight_sr.validation import ValidationSet

__all__ = ["plot_psnr", "plot_samples", "plot_weights"]

# Okabe and Ito's colours, which colour-blind readers can tell apart, then dashes.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
_DASHES = ("-", "--", ":", "-.")
_SAMPLE_SIDE = 160


def plot_psnr(results: Sequence[RunResult], tasks: Sequence[str], path: Path) -> None:
    """Draws PSNR-Y over the intervals, a panel per task and a line per arm.

    Lines are means over seeds; bands are one standard deviation to either side.
    """
    figure = Figure(figsize=(3.2 * len(tasks), 3.4), layout="constrained")
    panels = _panels(figure, 1, len(tasks))
    for panel, task in zip(panels, tasks, strict=True):
        for i, (arm, runs) in enumerate(_by_arm(results).items()):
            psnr = [[record.psnr[task] for record in run.history] for run in runs]
            _band(panel, psnr, i, str(arm))
        panel.set(title=task, xlabel="interval")
    panels[0].set_ylabel("PSNR-Y (dB)")
    _legend(figure, panels[0])
    _save(figure, path)


def plot_weights(results: Sequence[RunResult], tasks: Sequence[str], path: Path) -> None:
    """Draws each task's share over the intervals, a panel per arm and a line per task.

    Where the weights are spent on losses it is the share in the sum of weights, where they are
    spent on data that in the number of samples.
    """
    arms = _by_arm(results)
    figure = Figure(figsize=(min(3.2 * len(arms), 16), 3.4 * -(-len(arms) // 5)))
    figure.set_layout_engine("constrained")
    width = min(len(arms), 5)
    panels = _panels(figure, -(-len(arms) // width), width)
    for panel in panels[len(arms) :]:
        panel.set_visible(False)
    for panel, (arm, runs) in zip(panels, arms.items(), strict=False):
        for i, task in enumerate(tasks):
            shares = [[record.shares(arm.spend)[task] for record in run.history] for run in runs]
            _band(panel, shares, i, task)
        panel.set(title=str(arm), xlabel="interval", ylim=(0, None))
    panels[0].set_ylabel("share of the task")
    _legend(figure, panels[0])
    _save(figure, path)


def plot_samples(
    networks: Mapping[Arm, Callable[[Tensor], Tensor]],
    validation: ValidationSet,
    tasks: Sequence[str],
    path: Path,
) -> None:
    """Draws the middle of the first validation image per task: LR, bicubic, each arm, HR.

    Args:
        networks: a trained network per arm.
        validation: the validation set.
        tasks: the names of the tasks, a row each.
        path: the file.
    """
    titles = ["LR", "bicubic", *(str(arm) for arm in networks), "HR"]
    figure = Figure(figsize=(2.0 * len(titles), 2.1 * len(tasks)), layout="constrained")
    grid = figure.subplots(len(tasks), len(titles), squeeze=False)
    scale = validation.scale
    for row, task in zip(grid, tasks, strict=True):
        lr, hr = _middle(*next(validation.iterate(task)), scale)
        with torch.no_grad():
            nearest = F.interpolate(lr, scale_factor=scale, mode="nearest")
            outputs = [network(lr) for network in networks.values()]
        for panel, image in zip(row, [nearest, bicubic(scale)(lr), *outputs, hr], strict=True):
            pixels = image[0].float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
            panel.imshow(pixels.cpu().numpy(), interpolation="nearest")
            panel.set(xticks=[], yticks=[])
        row[0].set_ylabel(task)
    for panel, title in zip(grid[0], titles, strict=True):
        panel.set_title(title, fontsize=9)
    _save(figure, path)


def _middle(lr: Tensor, hr: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    height, width = (min(size, _SAMPLE_SIDE // scale) for size in lr.shape[-2:])
    top, left = (lr.shape[-2] - height) // 2, (lr.shape[-1] - width) // 2
    small = lr[..., top : top + height, left : left + width]
    large = hr[..., scale * top : scale * (top + height), scale * left : scale * (left + width)]
    return small, large


def _by_arm(results: Sequence[RunResult]) -> dict[Arm, list[RunResult]]:
    runs: dict[Arm, list[RunResult]] = {}
    for result in results:
        runs.setdefault(result.arm, []).append(result)
    return runs


def _band(panel: Axes, runs: Sequence[Sequence[float]], index: int, label: str) -> None:
    """Draws the mean over runs, and their deviation, against the interval."""
    columns = list(zip(*runs, strict=True))
    places = np.arange(1, len(columns) + 1)
    mean = np.array([statistics.fmean(column) for column in columns])
    colour = _COLOURS[index % len(_COLOURS)]
    dash = _DASHES[index // len(_COLOURS) % len(_DASHES)]
    marker = "o" if len(columns) < 12 else ""
    panel.plot(places, mean, dash, color=colour, label=label, marker=marker, markersize=3)
    if len(runs) > 1:
        spread = np.array([statistics.stdev(column) for column in columns])
        panel.fill_between(places, mean - spread, mean + spread, color=colour, alpha=0.15, lw=0)


def _panels(figure: Figure, rows: int, columns: int) -> list[Axes]:
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", alpha=0.3, linewidth=0.6)
        panel.xaxis.get_major_locator().set_params(integer=True)
    return panels


def _legend(figure: Figure, panel: Axes) -> None:
    lines, labels = panel.get_legend_handles_labels()
    figure.legend(
        lines, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False
    )


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
