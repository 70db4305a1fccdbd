"""Runs an ablation: references, then every arm with every seed, then the results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.markup import escape

from mtlweight_sr.evaluation import Scores
from mtlweight_sr.metrics import BackboneMissing, PerceptualDistance
from mtlweight_sr.problem import Problem
from mtlweight_sr.references import load_references, single_task_references
from mtlweight_sr.settings import RuntimeSettings
from mtlweight_sr.study.arms import Arm, build_strategy, needs_references
from mtlweight_sr.study.config import AblationConfig, task_preset
from mtlweight_sr.study.display import Display
from mtlweight_sr.study.results import RunResult
from mtlweight_sr.study.summary import Findings, summarize
from mtlweight_sr.tasks import preset
from mtlweight_sr.tasks.separation import separation_of
from mtlweight_sr.training import CHECKPOINT, Trainer, TrainingDiverged
from mtlweight_sr.training_files import save_checkpoint, write_json
from mtlweight_sr.validation import ValidationSet

__all__ = ["run_ablation"]

SEPARATION = "separation.json"
"""Name of the file that keeps how far apart the tasks are."""
MODEL = "model.pt"
"""Name of the averaged network in the folder of a finished run."""


def run_ablation(
    config: AblationConfig,
    *,
    runtime: RuntimeSettings | None = None,
    resume: bool = False,
    display: Display,
) -> Findings:
    """Runs every arm with every seed, and writes the results into `config.out`.

    Runs that are finished are not repeated; an interrupted one goes on where it stopped. A run
    that fails (a strategy that cannot be spent on data, a network that diverges) is noted in the
    report, and the others go on.

    Args:
        config: what to compare.
        runtime: how training is carried out.
        resume: whether to go on in a folder that has runs already.
        display: shows the progress.

    Returns:
        The tables, and where the report is.

    Raises:
        ValueError: data do not fit, or the folder holds runs of other settings; the message names
            the difference.
        FileExistsError: the folder has runs, and `resume` is off.
        TrainingInterrupted: the user stopped it.
    """
    runtime = RuntimeSettings() if runtime is None else runtime
    if (config.out / "runs").exists() and not resume:
        raise FileExistsError(
            f"{str(config.out)!r} holds the runs of an ablation: add --resume to go on with it, or "
            "give another --out."
        )
    distance, missing = _distance(config)
    problem = _problem(config)
    apart = separation_of(config.out / SEPARATION, problem.tasks, problem.photographs)
    display.tell(f"Tasks {config.tasks}: {apart.describe()}")
    trained = config.needs_references and config.references is None
    steps = config.training.steps
    runs = [(arm, seed) for seed in config.seeds for arm in config.arms]
    display.plan(steps * (len(runs) + trained * len(problem.tasks.names)))
    references = _references(config, problem, runtime, display)
    results: list[RunResult] = []
    failures: list[str] = []
    for arm, seed in runs:
        label = f"{arm} seed {seed}"
        display.begin(label)
        identity = _identity(config, problem, runtime, arm, seed, references)
        folder = config.out / "runs" / arm.folder(seed)
        _claim(folder, identity)
        if (folder / "result.json").exists():
            results.append(RunResult.model_validate_json((folder / "result.json").read_bytes()))
            display.skip(label, steps, "finished before")
            continue
        try:
            results.append(_run(config, problem, runtime, display, folder, identity, arm, seed))
        except (ValueError, TrainingDiverged) as error:
            failures.append(f"{label} failed: {error}")
            display.console.print(f"[red]{escape(failures[-1])}[/]")
    if not results:
        raise ValueError(f"No run succeeded. {failures[0]}")
    return summarize(
        config,
        problem,
        results,
        references,
        separation=apart,
        runtime=runtime,
        distance=distance,
        notes=[*missing, *failures],
    )


def _distance(config: AblationConfig) -> tuple[PerceptualDistance | None, list[str]]:
    """The perceptual distance, or the note that says why there is none."""
    if config.lpips == "none":
        return None, []
    try:
        return PerceptualDistance(config.lpips, backbone=config.lpips_backbone), []
    except BackboneMissing as error:
        return None, [f"There is no LPIPS column. {error}"]


def _problem(config: AblationConfig) -> Problem:
    tasks = preset(task_preset(config.tasks), config.model.scale)
    train, val = config.photographs()
    validation = ValidationSet.load_or_build(
        val,
        tasks,
        seed=0,
        crop=config.val_crop,
        images=config.val_images,
        root=config.out / "validation",
    )
    return Problem(tasks, train, validation)


def _references(
    config: AblationConfig, problem: Problem, runtime: RuntimeSettings, display: Display
) -> dict[str, Scores] | None:
    """PSNR-Y and SSIM-Y of single-task networks, where an arm reads them."""
    if not config.needs_references:
        return None
    if config.references is not None:
        metrics = {arm.metric for arm in config.arms if needs_references(arm.strategy)}
        found = {m: load_references(config.references, problem.tasks.names, m) for m in metrics}
        unread = dict.fromkeys(problem.tasks.names, float("nan"))
        return {
            name: Scores(found.get("psnr", unread)[name], found.get("ssim", unread)[name])
            for name in problem.tasks.names
        }
    display.begin("single-task references")
    before = {path.parent for path in (config.out / "references").glob("*/reference.json")}
    found_scores = single_task_references(
        problem,
        config.model,
        config.training.model_copy(update={"seed": config.seeds[0]}),
        cache=config.out / "references",
        runtime=runtime,
        observer=display,
    )
    after = {path.parent for path in (config.out / "references").glob("*/reference.json")}
    cached = len(problem.tasks.names) - len(after - before)
    if cached:
        display.skip("single-task references", cached * config.training.steps, "from the cache")
    return found_scores


def _identity(
    config: AblationConfig,
    problem: Problem,
    runtime: RuntimeSettings,
    arm: Arm,
    seed: int,
    references: Mapping[str, Scores] | None,
) -> dict[str, Any]:
    """Everything that determines a run, as JSON has it."""
    read = None
    if references is not None and needs_references(arm.strategy):
        read = {name: getattr(scores, arm.metric) for name, scores in references.items()}
    identity = {
        "strategy": arm.strategy,
        "options": config.options.get(arm.strategy, {}),
        "references": read,
        "training": config.training.model_copy(
            update={"seed": seed, "spend": arm.spend, "metric": arm.metric}
        ).model_dump(mode="json"),
        "model": config.model.model_dump(mode="json"),
        "tasks": task_preset(config.tasks),
        "photographs": problem.photographs.content_hash(),
        "validation": problem.validation.request,
        "device": runtime.torch_device().type,
        "versions": {package: version(package) for package in ("mtlweight", "torch")},
    }
    return dict(json.loads(json.dumps(identity)))


def _claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Writes what determines a run into its folder, or refuses a folder of another run."""
    file = folder / "identity.json"
    if not file.exists():
        write_json(file, identity)
        return
    before, now = _flat(json.loads(file.read_bytes())), _flat(identity)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise ValueError(
                f"{str(folder)!r} holds a run with {name} = {before.get(name)!r}, and now it is "
                f"{now.get(name)!r}: give the same settings, or another --out."
            )


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {path: tree}
    return {
        name: leaf
        for key, branch in tree.items()
        for name, leaf in _flat(branch, f"{path}.{key}" if path else key).items()
    }


def _run(
    config: AblationConfig,
    problem: Problem,
    runtime: RuntimeSettings,
    display: Display,
    folder: Path,
    identity: dict[str, Any],
    arm: Arm,
    seed: int,
) -> RunResult:
    strategy = build_strategy(
        arm,
        problem.tasks.names,
        config.options.get(arm.strategy, {}),
        seed=seed,
        references=identity["references"],
    )
    trainer = Trainer(
        config.model.build(seed),
        strategy,
        problem,
        config.training.model_copy(update={"seed": seed, "spend": arm.spend, "metric": arm.metric}),
        folder=folder,
        runtime=runtime,
        observer=display,
    )
    if (folder / CHECKPOINT).exists():
        trainer.load()
    history = trainer.run()
    save_checkpoint(folder / MODEL, trainer.learner.average.state_dict())
    result = RunResult(arm=arm, seed=seed, history=tuple(history), identity=identity)
    write_json(folder / "result.json", result.model_dump(mode="json"))
    (folder / CHECKPOINT).unlink()
    return result
