"""From finished runs to files: tables, CSV, JSON, plots and the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtlweight_sr.evaluation import Scores, bicubic, evaluate, evaluate_perceptual
from mtlweight_sr.metrics import PerceptualDistance
from mtlweight_sr.problem import Problem
from mtlweight_sr.settings import RuntimeSettings
from mtlweight_sr.study.arms import Arm
from mtlweight_sr.study.config import AblationConfig
from mtlweight_sr.study.plots import plot_psnr, plot_samples, plot_weights
from mtlweight_sr.study.report import Report, write_report
from mtlweight_sr.study.results import GAIN, RunResult, Table, Values, metric_table, to_csv
from mtlweight_sr.tasks.separation import Separation
from mtlweight_sr.training_files import load_checkpoint, write_atomically, write_json

__all__ = ["Findings", "summarize"]


@dataclass(frozen=True)
class Findings:
    """What an ablation found.

    Attributes:
        tables: one per metric, PSNR-Y first.
        report: the report in HTML; `report.md` is beside it.
        notes: remarks, also in the report.
    """

    tables: tuple[Table, ...]
    report: Path
    notes: tuple[str, ...]


def summarize(
    config: AblationConfig,
    problem: Problem,
    results: Sequence[RunResult],
    references: Mapping[str, Scores] | None,
    *,
    separation: Separation,
    runtime: RuntimeSettings,
    distance: PerceptualDistance | None,
    notes: Sequence[str],
) -> Findings:
    """Writes `results.csv`, `results.json`, plots and the report into `config.out`.

    Args:
        config: what was compared.
        problem: the tasks, photographs and validation set.
        results: the finished runs.
        references: metrics of single-task networks, a row of the tables.
        separation: how far apart the tasks are.
        runtime: the device.
        distance: the perceptual distance; None leaves its table out.
        notes: remarks for the report, further to those of the config.
    """
    device = runtime.torch_device()
    names = problem.tasks.names
    networks = _Networks(config, device)
    plain = bicubic(config.model.scale)
    scores = evaluate(plain, problem.validation, names, device=device)
    tables = []
    for metric in ("psnr", "ssim"):
        values = _by_arm(results, lambda r, m=metric: getattr(r.history[-1], m))  # type: ignore[misc]
        others: dict[str, Values] = {"bicubic": {n: getattr(scores[n], metric) for n in names}}
        alone = {task: getattr(s, metric) for task, s in (references or {}).items()}
        if alone and not any(value != value for value in alone.values()):
            others["single-task networks"] = alone
        tables.append(metric_table(metric, names, values, config.baseline, others))
    distances: dict[Arm, dict[int, Values]] = {}
    if distance is not None:
        distance = distance.to(device)

        def perceptual(upscaler: Callable[[Tensor], Tensor]) -> Values:
            assert distance is not None
            return evaluate_perceptual(upscaler, distance, problem.validation, names, device=device)

        distances = _by_arm(results, lambda result: perceptual(networks(result)))
        others = {"bicubic": perceptual(plain)}
        tables.append(metric_table("lpips", names, distances, config.baseline, others))
    write_atomically(config.out / "results.csv", to_csv(results, names, distances).encode())
    plot_psnr(results, names, config.out / "psnr.png")
    plot_weights(results, names, config.out / "weights.png")
    first = {result.arm: result for result in reversed(results)}
    shown = {arm: networks(first[arm]) for arm in config.arms if arm in first}
    plot_samples(shown, problem.validation, names, config.out / "samples.png")
    notes = [*config.notes, *_caveats(config, problem), *notes]
    tasks = f"{problem.tasks.describe()}\n\n{separation.describe()}"
    report = _report(config, problem, results, tables, tasks, runtime, notes)
    _, html = write_report(report, config.out)
    write_json(
        config.out / "results.json",
        {
            "settings": config.model_dump(mode="json"),
            "device": str(device),
            "tasks": problem.tasks.describe(),
            "separation": asdict(separation),
            "references": {
                task: {m: value for m, value in scores._asdict().items() if value == value}
                for task, scores in (references or {}).items()
            },
            "tables": [table.model_dump(mode="json") for table in tables],
            "notes": notes,
        },
    )
    return Findings(tuple(tables), html, tuple(notes))


class _Networks:
    """The trained networks, read from the folders of their runs."""

    def __init__(self, config: AblationConfig, device: torch.device) -> None:
        self._config, self._device = config, device

    def __call__(self, result: RunResult) -> nn.Module:
        folder = self._config.out / "runs" / result.arm.folder(result.seed)
        network = self._config.model.build(result.seed)
        network.load_state_dict(load_checkpoint(folder / "model.pt"))
        return network.to(self._device).eval().requires_grad_(False)


def _by_arm(
    results: Sequence[RunResult], value: Callable[[RunResult], Values]
) -> dict[Arm, dict[int, Values]]:
    found: dict[Arm, dict[int, Values]] = {}
    for result in results:
        found.setdefault(result.arm, {})[result.seed] = value(result)
    return found


def _caveats(config: AblationConfig, problem: Problem) -> list[str]:
    notes = []
    if len(config.seeds) == 1:
        notes.append(
            "One seed: nothing is known about how much the numbers vary between trainings, and "
            "differences of a few hundredths of a dB must not be read as an effect."
        )
    elif len(config.seeds) < 5:
        notes.append(f"A deviation over {len(config.seeds)} seeds is a rough estimate.")
    if config.data is None:
        notes.append(
            f"Trained on the {len(problem.photographs)} bundled photographs and measured on "
            f"{len(problem.validation)}: enough to see that everything works, too few to rank "
            "strategies."
        )
    if config.needs_references and config.references is None:
        notes.append(
            "Each single-task network was trained on as many samples as a multi-task network, all "
            f"of its task, with seed {config.seeds[0]}."
        )
    return notes


def _report(
    config: AblationConfig,
    problem: Problem,
    results: Sequence[RunResult],
    tables: Sequence[Table],
    tasks: str,
    runtime: RuntimeSettings,
    notes: Sequence[str],
) -> Report:
    training = config.training
    seeds = "one seed" if len(config.seeds) == 1 else f"{len(config.seeds)} seeds"
    summary = [
        f"{len(config.arms)} arms with {seeds} each, {training.intervals} intervals of "
        f"{training.iterations} steps of {training.batch_size} crops, at scale "
        f"{config.model.scale}. Metrics are those of the moving average of the network at the end "
        "of training, on the luma, with a border of the scale left out."
    ]
    gains = [row for row in tables[0].rows if row.ranked and GAIN in row.cells]
    if gains:
        best = max(gains, key=lambda row: row.cells[GAIN].mean)
        summary.append(
            f"The largest gain over {config.baseline} in average PSNR-Y is that of {best.label}: "
            f"{best.cells[GAIN].text(3, signed=True)} dB."
        )
    return Report(
        title="Task weighting in super-resolution: an ablation",
        summary=tuple(summary),
        tables=tuple(tables),
        plots=(
            ("PSNR-Y per task over the intervals", "psnr.png"),
            ("Shares of the tasks over the intervals", "weights.png"),
            ("Validation samples, one per task", "samples.png"),
        ),
        tasks=tasks,
        settings=tuple(_settings(config, problem, runtime)),
        notes=tuple(notes),
    )


def _settings(
    config: AblationConfig, problem: Problem, runtime: RuntimeSettings
) -> list[tuple[str, str]]:
    values: dict[str, Any] = {
        "preset": config.name,
        "arms": ", ".join(map(str, config.arms)),
        **{f"options of {name}": options for name, options in config.options.items()},
        "metric read": ", ".join(f"{a.strategy}: {a.metric}" for a in config.arms),
        "seeds": ", ".join(map(str, config.seeds)),
        "photographs": f"{len(problem.photographs)} from {config.data or 'the bundled ones'}",
        "validation images": f"{len(problem.validation)} from {config.val or 'the bundled ones'}",
        "tasks": config.tasks,
        "model": f"{config.model.name} {config.model.options or 'in full size'}",
        "scale": config.model.scale,
        **config.training.model_dump(exclude={"seed", "spend", "metric"}),
        "device": str(runtime.torch_device()),
    }
    return [(name, str(value)) for name, value in values.items()]
