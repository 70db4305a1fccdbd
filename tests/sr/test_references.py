from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import mtlweight
from mtlweight_sr.data import PhotographFolder
from mtlweight_sr.problem import Problem
from mtlweight_sr.references import OneTask, load_references, single_task_references
from mtlweight_sr.settings import ModelSettings, RuntimeSettings, TrainingSettings
from mtlweight_sr.tasks import preset
from mtlweight_sr.training import Observer, Trainer, TrainingInterrupted
from mtlweight_sr.validation import ValidationSet

MODEL = ModelSettings(scale=2, options={"channels": 8, "blocks": 1})
RUNTIME = RuntimeSettings(device="cpu", tensorboard=False)
SETTINGS = TrainingSettings(
    intervals=1, iterations=2, batch_size=2, crop=32, learning_rate=1e-3, average=0.5
)


class Steps(Observer):
    def __init__(self) -> None:
        self.tasks: list[str] = []

    def on_step(self, trainer: Trainer) -> None:
        self.tasks += trainer.names


def photographs(folder: Path, seed: int) -> PhotographFolder:
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir()
    pixels = torch.randint(256, (5, 5, 3), generator=generator, dtype=torch.uint8)
    for index in range(2):
        Image.fromarray(pixels.roll(index, 0).numpy()).resize((40, 40)).save(
            folder / f"{index}.png"
        )
    return PhotographFolder(folder)


@pytest.fixture
def problem(tmp_path: Path) -> Problem:
    tasks = preset("paper2", 2)
    validation = ValidationSet.build(
        photographs(tmp_path / "val", 1), tasks, seed=5, crop=32, out=tmp_path / "set"
    )
    return Problem(tasks, photographs(tmp_path / "train", 0), validation)


def test_each_task_is_trained_once_and_then_read(problem: Problem, tmp_path: Path) -> None:
    first, second = Steps(), Steps()
    made = single_task_references(
        problem, MODEL, SETTINGS, cache=tmp_path / "cache", runtime=RUNTIME, observer=first
    )
    read = single_task_references(
        problem, MODEL, SETTINGS, cache=tmp_path / "cache", runtime=RUNTIME, observer=second
    )
    assert first.tasks == ["low_noise"] * 2 + ["high_noise"] * 2
    assert second.tasks == []
    assert made == read
    assert made["low_noise"].psnr != made["high_noise"].psnr
    assert 5 < made["low_noise"].psnr < 60


def test_a_reference_is_what_training_on_the_task_alone_gives(
    problem: Problem, tmp_path: Path
) -> None:
    made = single_task_references(
        problem, MODEL, SETTINGS, cache=tmp_path / "cache", runtime=RUNTIME
    )
    alone = Problem(OneTask(problem.tasks, "high_noise"), problem.photographs, problem.validation)
    trainer = Trainer(
        MODEL.build(0),
        mtlweight.Equal(["high_noise"]),
        alone,
        SETTINGS,
        folder=tmp_path / "run",
        runtime=RUNTIME,
    )
    assert made["high_noise"].psnr == trainer.run()[-1].psnr["high_noise"]


@pytest.mark.parametrize(
    "change", ["seed", "iterations", "model", "photographs", "validation", "versions"]
)
def test_whatever_determines_a_reference_makes_a_new_one(
    problem: Problem, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    single_task_references(problem, MODEL, SETTINGS, cache=cache, runtime=RUNTIME)
    model, settings = MODEL, SETTINGS
    if change == "seed":
        settings = SETTINGS.model_copy(update={"seed": 1})
    elif change == "iterations":
        settings = SETTINGS.model_copy(update={"iterations": 3})
    elif change == "model":
        model = MODEL.model_copy(update={"options": {"channels": 8, "blocks": 2}})
    elif change == "photographs":
        problem = Problem(problem.tasks, photographs(tmp_path / "others", 9), problem.validation)
    elif change == "validation":
        validation = ValidationSet.build(
            photographs(tmp_path / "v", 1), preset("paper2", 2), seed=6, crop=32, out=tmp_path / "w"
        )
        problem = Problem(problem.tasks, problem.photographs, validation)
    else:
        monkeypatch.setattr("mtlweight_sr.references.version", lambda package: "99.0")
    steps = Steps()
    single_task_references(problem, model, settings, cache=cache, runtime=RUNTIME, observer=steps)
    assert len(steps.tasks) == 2 * settings.iterations


def test_what_does_not_determine_it_makes_none(problem: Problem, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    single_task_references(problem, MODEL, SETTINGS, cache=cache, runtime=RUNTIME)
    steps = Steps()
    single_task_references(
        problem,
        MODEL,
        SETTINGS.model_copy(update={"spend": "data", "metric": "ssim"}),
        cache=cache,
        runtime=RUNTIME.model_copy(update={"workers": 1, "log_every": 1}),
        observer=steps,
    )
    assert steps.tasks == []


def test_an_interrupted_reference_goes_on(problem: Problem, tmp_path: Path) -> None:
    class Stop(Observer):
        def on_step(self, trainer: Trainer) -> None:
            if trainer.names == ("high_noise",):
                trainer.stop()

    whole = single_task_references(
        problem, MODEL, SETTINGS, cache=tmp_path / "whole", runtime=RUNTIME
    )
    with pytest.raises(TrainingInterrupted):
        single_task_references(
            problem, MODEL, SETTINGS, cache=tmp_path / "parts", runtime=RUNTIME, observer=Stop()
        )
    steps = Steps()
    parts = single_task_references(
        problem, MODEL, SETTINGS, cache=tmp_path / "parts", runtime=RUNTIME, observer=steps
    )
    assert parts == whole
    assert steps.tasks == ["high_noise"]


def test_references_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "references.json"
    file.write_text(json.dumps({"a": {"psnr": 24.5, "ssim": 0.7}, "b": 23, "c": None}))
    assert load_references(file, ["a", "b"], "psnr") == {"a": 24.5, "b": 23.0}
    with pytest.raises(ValueError, match="psnr of task 'c', got None"):
        load_references(file, ["a", "c"], "psnr")
    with pytest.raises(ValueError, match="ssim of task 'd', got None"):
        load_references(file, ["d"], "ssim")
    file.write_text("[1]")
    with pytest.raises(ValueError, match="must hold an object like"):
        load_references(file, ["a"], "psnr")
    file.write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        load_references(file, ["a"], "psnr")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_references(tmp_path / "none.json", ["a"], "psnr")


def test_a_forged_cache_is_refused(problem: Problem, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    single_task_references(problem, MODEL, SETTINGS, cache=cache, runtime=RUNTIME)
    file = next(cache.glob("low_noise-*/reference.json"))
    content = json.loads(file.read_text())
    content["key"]["task"] = "other"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="delete it"):
        single_task_references(problem, MODEL, SETTINGS, cache=cache, runtime=RUNTIME)
    with pytest.raises(ValueError, match="low_noise, high_noise, got 'rain'"):
        OneTask(problem.tasks, "rain")
