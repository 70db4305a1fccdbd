"""Single-task references: what a network reaches on a task that it is trained on alone."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtlweight import Equal
from mtlweight_sr.degradation import DegradationParameters, degrade
from mtlweight_sr.evaluation import Scores
from mtlweight_sr.problem import Problem
from mtlweight_sr.settings import Metric, ModelSettings, RuntimeSettings, TrainingSettings
from mtlweight_sr.tasks.draws import TaskDraws, TaskIds, checked_task_ids
from mtlweight_sr.training import CHECKPOINT, Observer, Trainer
from mtlweight_sr.training_files import save_checkpoint, write_json

__all__ = ["OneTask", "load_references", "reference_key", "single_task_references"]

_FORMAT = 1
_PROBES = 16


class OneTask(TaskDraws):
    """A task of a space by itself: the same samples for the same ids and seed.

    Args:
        tasks: the space.
        name: the task.

    Raises:
        ValueError: the space has no such task.
    """

    def __init__(self, tasks: TaskDraws, name: str) -> None:
        if name not in tasks.names:
            raise ValueError(f"`name` must be one of {', '.join(tasks.names)}, got {name!r}.")
        self._tasks, self._name = tasks, name
        self.space = tasks.space
        self.names = (name,)
        self.masses = {name: tasks.masses[name]}

    def draw(
        self, task_ids: TaskIds, ids: Sequence[int] | Tensor, seed: int, stream: int = 0
    ) -> DegradationParameters:
        """Parameters of samples of the task; its id here is 0."""
        checked_task_ids(task_ids, self.names, len(ids))
        return self._tasks.draw(self._name, ids, seed, stream)

    def describe(self) -> str:
        """The definitions of the space it is from."""
        return f"{self.names[0]} of:\n{self._tasks.describe()}"


def single_task_references(
    problem: Problem,
    model: ModelSettings,
    settings: TrainingSettings,
    *,
    cache: Path | str,
    runtime: RuntimeSettings | None = None,
    observer: Observer | None = None,
) -> dict[str, Scores]:
    """Trains a dedicated network for each task, or takes its metrics from the cache.

    Each gets the budget of the network they are references for: as many steps of as many samples,
    all of its task. Its metrics are those at the end of training. An interrupted training goes on
    where it stopped.

    Args:
        problem: all tasks, the photographs, the validation set.
        model: the network; its initialisation is that of `settings.seed`.
        settings: the training; how the weights are spent does not matter with one task.
        cache: a folder with one folder per reference, named by `reference_key`.
        runtime: how the training is carried out.
        observer: is told how it goes.

    Returns:
        The metrics by task.

    Raises:
        TrainingInterrupted: a training was asked to stop.
        ValueError: a file of the cache is not what was written there.
    """
    runtime = RuntimeSettings() if runtime is None else runtime
    found = {}
    for name in problem.tasks.names:
        one = Problem(OneTask(problem.tasks, name), problem.photographs, problem.validation)
        key = reference_key(one, model, settings, runtime.torch_device())
        folder = Path(cache) / f"{name}-{_digest(key)[:16]}"
        file = folder / "reference.json"
        if not file.exists():
            _train(one, model, settings, runtime, observer, folder)
            # The checkpoint goes last: a crash in between trains nothing anew.
            (folder / CHECKPOINT).unlink()
        stored = json.loads(file.read_bytes())
        if stored.get("key") != key:
            raise ValueError(f"{str(file)!r} is not the reference it is named for; delete it.")
        found[name] = Scores(stored["psnr"], stored["ssim"])
    return found


def _train(
    problem: Problem,
    model: ModelSettings,
    settings: TrainingSettings,
    runtime: RuntimeSettings,
    observer: Observer | None,
    folder: Path,
) -> None:
    (name,) = problem.tasks.names
    trainer = Trainer(
        model.build(settings.seed),
        Equal([name]),
        problem,
        settings.model_copy(update={"spend": "loss", "metric": "psnr"}),
        folder=folder,
        runtime=runtime,
        observer=observer,
    )
    if (folder / CHECKPOINT).exists():
        trainer.load()
    last = trainer.run()[-1]
    save_checkpoint(folder / "model.pt", trainer.learner.average.state_dict())
    key = reference_key(problem, model, settings, trainer.device)
    scores = {"psnr": last.psnr[name], "ssim": last.ssim[name]}
    write_json(folder / "reference.json", {"task": name, **scores, "key": key})


def reference_key(
    problem: Problem, model: ModelSettings, settings: TrainingSettings, device: torch.device
) -> dict[str, Any]:
    """Everything that determines a reference, as JSON has it.

    Code is covered by what it does: the hash of the network's initial weights stands for its
    architecture, and that of a few degraded crops for the degradation and the task's definition.

    Args:
        problem: of one task.
        model: the network.
        settings: the training.
        device: where it is trained.
    """
    (name,) = problem.tasks.names
    training = settings.model_dump(mode="json", exclude={"spend", "metric"})
    key = {
        "format": _FORMAT,
        "task": name,
        "samples": _probe(problem, settings),
        "photographs": problem.photographs.content_hash(),
        "validation": problem.validation.request,
        "model": model.model_dump(mode="json"),
        "initial_weights": _weights_hash(model, settings.seed),
        "training": training,
        "device": device.type,
        "versions": {package: version(package) for package in ("mtlweight", "torch", "numpy")},
    }
    return dict(json.loads(json.dumps(key)))


def load_references(path: Path | str, tasks: Sequence[str], metric: Metric) -> dict[str, float]:
    """Reads references from a JSON file.

    Args:
        path: a file with one entry per task, a number or an object with `psnr` and `ssim`.
        tasks: the names of the tasks; others in the file are ignored.
        metric: the one wanted; plain numbers are taken to be it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or lacks a task; the message says what it should hold.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"The file of references {str(path)!r} does not exist.")
    example = json.dumps({task: {"psnr": 24.1, "ssim": 0.65} for task in tasks[:1]})
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no JSON ({error}); write {example}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} must hold an object like {example}, got {content!r}.")
    found = {}
    for task in tasks:
        entry = content.get(task)
        value = entry.get(metric) if isinstance(entry, Mapping) else entry
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise ValueError(
                f"{str(path)!r} must hold the {metric} of task {task!r}, got {entry!r}; write "
                f"{example}."
            )
        found[task] = float(value)
    return found


def _probe(problem: Problem, settings: TrainingSettings) -> str:
    """Hash of crops of a fixed pattern, degraded as training would degrade them."""
    side = 8 * problem.validation.scale
    ramp = torch.arange(side * side, dtype=torch.float32).reshape(side, side)
    hr = torch.stack([ramp, ramp.T, ramp.flip(0)]) / (side * side)
    parameters = problem.tasks.draw(
        torch.zeros(_PROBES, dtype=torch.int64), range(_PROBES), settings.seed
    )
    lr = degrade(hr.expand(_PROBES, -1, -1, -1), parameters)
    return hashlib.sha256(lr.mul(255).round().byte().numpy().tobytes()).hexdigest()


def _weights_hash(model: ModelSettings, seed: int) -> str:
    digest = hashlib.sha256()
    for name, value in model.build(seed).state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def _digest(key: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
