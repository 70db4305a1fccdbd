from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import mtlweight
from mtlweight_sr.data import PhotographFolder
from mtlweight_sr.degradation import degrade
from mtlweight_sr.degradation.crop import crop_pair
from mtlweight_sr.problem import Problem
from mtlweight_sr.settings import ModelSettings, RuntimeSettings, TrainingSettings
from mtlweight_sr.tasks import preset
from mtlweight_sr.training import (
    CHECKPOINT,
    IntervalRecord,
    Observer,
    Trainer,
    TrainingDiverged,
    TrainingInterrupted,
)
from mtlweight_sr.validation import ValidationSet

TASKS = preset("paper4", 2)
MODEL = ModelSettings(scale=2, options={"channels": 8, "blocks": 1})
REFERENCES = dict.fromkeys(TASKS.names, 25.0)


def photographs(folder: Path, count: int, seed: int) -> PhotographFolder:
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir()
    for index in range(count):
        coarse = torch.rand(1, 3, 6, 6, generator=generator)
        image = torch.nn.functional.interpolate(coarse, size=(48, 44), mode="bicubic")[0]
        pixels = image.clamp(0, 1).mul(255).byte().permute(1, 2, 0).contiguous()
        Image.fromarray(pixels.numpy()).save(folder / f"{index}.png")
    return PhotographFolder(folder)


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    folder = tmp_path_factory.mktemp("problem")
    validation = ValidationSet.build(
        photographs(folder / "val", 2, 1), TASKS, seed=5, crop=32, out=folder / "set"
    )
    return Problem(TASKS, photographs(folder / "train", 3, 0), validation)


def settings(**changes: Any) -> TrainingSettings:
    small: dict[str, Any] = {
        "intervals": 3,
        "iterations": 3,
        "batch_size": 4,
        "crop": 32,
        "learning_rate": 1e-3,
        "average": 0.9,
    }
    return TrainingSettings(**(small | changes))


def runtime(**changes: Any) -> RuntimeSettings:
    quiet = {"device": "cpu", "checkpoint_every": 100, "log_every": 2, "tensorboard": False}
    return RuntimeSettings(**(quiet | changes))


def trainer(
    problem: Problem,
    folder: Path,
    strategy: mtlweight.Strategy | None = None,
    model: nn.Module | None = None,
    observer: Observer | None = None,
    run: RuntimeSettings | None = None,
    **changes: Any,
) -> Trainer:
    return Trainer(
        MODEL.build(0) if model is None else model,
        mtlweight.Equal(problem.tasks.names) if strategy is None else strategy,
        problem,
        settings(**changes),
        folder=folder,
        runtime=runtime() if run is None else run,
        observer=observer,
    )


def parameters(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class StopAt(Observer):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer: Trainer) -> None:
        if trainer.step == self.step:
            trainer.stop()


def strategy_of(name: str) -> mtlweight.Strategy:
    options = {"focal_achievement": {"references": REFERENCES, "gamma": 3.0}}
    return mtlweight.build(name, TASKS.names, **options.get(name, {}))


@pytest.mark.parametrize("context", [0, 8])
def test_equal_on_losses_is_the_loop_one_writes_by_hand(
    problem: Problem, tmp_path: Path, context: int
) -> None:
    run = trainer(problem, tmp_path, context=context)
    run.run()

    chosen = settings()
    model = MODEL.build(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.99))
    sampler = mtlweight.QuotaSampler.for_generated(3, TASKS.names, num_samples=12, batch_size=4)
    dataset = run.loader.dataset
    step = 0
    for _ in range(3):
        for keys in sampler:
            crops = [dataset[key] for key in keys]
            assert crops[0].image.shape == (3, 32 + context, 32 + context)
            hr = torch.stack([crop.image for crop in crops]).float() / 255
            tasks = torch.tensor([crop.task for crop in crops])
            seeds = torch.tensor([crop.seed for crop in crops])
            lr = degrade(hr, TASKS.draw(tasks, seeds, 0, stream=2))
            if context:
                hr, lr = crop_pair(hr, lr, 32, seeds, 2)
            each = (model(lr) - hr).abs().mean((1, 2, 3))
            # A batch of four holds one sample of each task: the mean over tasks is the plain one.
            assert tasks.unique().numel() == 4
            optimizer.param_groups[0]["lr"] = chosen.learning_rate_at(step)
            optimizer.zero_grad()
            each.mean().backward()
            optimizer.step()
            step += 1
    assert torch.allclose(parameters(model), parameters(run.learner.model), atol=1e-6, rtol=0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("name", "spend", "stop"),
    [("dwa", "loss", 4), ("focal_achievement", "data", 5), ("uw", "loss", 6), ("rlw", "data", 1)],
)
def test_interrupted_and_resumed_is_uninterrupted_to_the_bit(
    problem: Problem, tmp_path: Path, name: str, spend: Any, stop: int, workers: int
) -> None:
    whole = trainer(problem, tmp_path / "whole", strategy_of(name), spend=spend)
    whole.run()

    first = trainer(
        problem,
        tmp_path / "parts",
        strategy_of(name),
        observer=StopAt(stop),
        run=runtime(workers=workers),
        spend=spend,
    )
    with pytest.raises(TrainingInterrupted, match=f"step {stop} of 9"):
        first.run()
    second = trainer(
        problem,
        tmp_path / "parts",
        strategy_of(name),
        model=MODEL.build(99),
        run=runtime(workers=workers),
        spend=spend,
    )
    second.load()
    assert second.step == stop
    second.run()

    assert second.history == whole.history
    assert torch.equal(parameters(second.learner.model), parameters(whole.learner.model))
    assert torch.equal(parameters(second.learner.average), parameters(whole.learner.average))
    assert torch.equal(second.strategy.weights, whole.strategy.weights)
    assert (tmp_path / "parts/log.jsonl").read_text() == (tmp_path / "whole/log.jsonl").read_text()


def test_a_run_may_resume_from_other_memory(problem: Problem, tmp_path: Path) -> None:
    whole = trainer(problem, tmp_path / "whole", strategy_of("dwa"), spend="data")
    whole.run()
    for stop, run in ((2, runtime(cache="device")), (5, runtime(cache="host", workers=2))):
        part = trainer(
            problem,
            tmp_path / "parts",
            strategy_of("dwa"),
            observer=StopAt(stop),
            run=run,
            spend="data",
        )
        if stop > 2:
            part.load()
        with pytest.raises(TrainingInterrupted):
            part.run()
    last = trainer(
        problem, tmp_path / "parts", strategy_of("dwa"), run=runtime(cache="device"), spend="data"
    )
    last.load()
    assert last.run() == whole.history
    assert torch.equal(parameters(last.learner.model), parameters(whole.learner.model))
    assert (tmp_path / "parts/log.jsonl").read_text() == (tmp_path / "whole/log.jsonl").read_text()


def test_photographs_that_do_not_fit_are_refused_before_training(
    problem: Problem, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"3 photographs take 1\.9e-05 GB decoded, .* 1e-09 GB"):
        trainer(problem, tmp_path, run=runtime(cache="device", cache_bytes=1))
    with pytest.raises(ValueError, match="'none', 'host' or 'device'"):
        runtime(cache="disk")


def test_the_pace_is_written_apart_from_the_log(problem: Problem, tmp_path: Path) -> None:
    class Shares(Observer):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_step(self, trainer: Trainer) -> None:
            self.seen.append(trainer.pace.waiting_share)

    observer = Shares()
    run = trainer(problem, tmp_path, observer=observer, intervals=2)
    run.run()
    lines = [json.loads(line) for line in (tmp_path / "pace.jsonl").read_text().splitlines()]
    assert [(line["step"], line["steps"]) for line in lines] == [(3, 3), (6, 3)]
    assert all(0 < line["waiting"] < line["seconds"] for line in lines)
    assert len(observer.seen) == 6
    assert all(0 < share < 1 for share in observer.seen)
    assert "waiting" not in (tmp_path / "log.jsonl").read_text()


def test_a_run_stopped_while_validating_only_validates_again(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trainer(problem, tmp_path / "whole", strategy_of("dwa"), spend="data")
    whole.run()
    parts = trainer(problem, tmp_path / "parts", strategy_of("dwa"), spend="data")
    read = problem.validation.iterate

    def stop_first(task: str) -> Any:
        parts.stop()
        return read(task)

    monkeypatch.setattr(problem.validation, "iterate", stop_first)
    with pytest.raises(TrainingInterrupted):
        parts.run()
    monkeypatch.undo()
    again = trainer(problem, tmp_path / "parts", strategy_of("dwa"), spend="data")
    again.load()
    assert (again.step, len(again.history)) == (3, 0)
    assert again.run() == whole.history
    assert torch.equal(parameters(again.learner.model), parameters(whole.learner.model))


def test_what_a_crash_left_after_the_checkpoint_is_dropped(
    problem: Problem, tmp_path: Path
) -> None:
    class Crash(Observer):
        def on_step(self, trainer: Trainer) -> None:
            if trainer.step == 8:
                raise OSError("power failure")

    whole = trainer(problem, tmp_path / "whole", strategy_of("gls"))
    whole.run()
    crashed = trainer(
        problem,
        tmp_path / "crashed",
        strategy_of("gls"),
        observer=Crash(),
        run=runtime(checkpoint_every=4, log_every=1),
    )
    with pytest.raises(OSError, match="power"):
        crashed.run()
    again = trainer(problem, tmp_path / "crashed", strategy_of("gls"), run=runtime(log_every=1))
    again.load()
    assert again.step == 6  # the end of an interval writes a checkpoint too
    assert again.run() == whole.history
    lines = [json.loads(line) for line in (tmp_path / "crashed/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "step" in line] == list(range(1, 10))


def test_ctrl_c_finishes_the_step_and_saves(problem: Problem, tmp_path: Path) -> None:
    class CtrlC(Observer):
        def on_step(self, trainer: Trainer) -> None:
            if trainer.step == 2:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingInterrupted):
        trainer(problem, tmp_path, observer=CtrlC()).run()
    assert signal.getsignal(signal.SIGINT) is before
    again = trainer(problem, tmp_path)
    again.load()
    assert again.step == 2


def test_data_spending_draws_what_the_weights_ask_for(problem: Problem, tmp_path: Path) -> None:
    class Weights(Observer):
        def __init__(self) -> None:
            self.seen: list[list[float]] = []

        def on_interval(self, trainer: Trainer, record: IntervalRecord) -> None:
            self.seen.append(trainer.strategy.weights.tolist())

    observer = Weights()
    run = trainer(
        problem,
        tmp_path,
        strategy_of("focal_achievement"),
        observer=observer,
        spend="data",
        iterations=10,
    )
    history = run.run()
    assert set(history[0].counts.values()) == {10}
    for weights, record in zip(observer.seen, history[1:], strict=False):
        assert max(weights) - min(weights) > 0.02
        assert sum(record.counts.values()) == 40
        for weight, count in zip(weights, record.counts.values(), strict=True):
            assert abs(40 * weight - count) <= 1
    hardest = min(history[0].psnr, key=history[0].psnr.__getitem__)
    assert history[1].counts[hardest] == max(history[1].counts.values())


def test_loss_spending_keeps_quotas_equal_and_fixed_data_spending_starts_at_once(
    problem: Problem, tmp_path: Path
) -> None:
    weights = [1.0, 2.0, 3.0, 4.0]
    fixed = mtlweight.build("fixed", TASKS.names, weights=weights)
    on_losses = trainer(problem, tmp_path / "loss", fixed, iterations=10, intervals=1).run()
    fixed = mtlweight.build("fixed", TASKS.names, weights=weights)
    on_data = trainer(
        problem, tmp_path / "data", fixed, iterations=10, intervals=1, spend="data"
    ).run()
    assert list(on_losses[0].counts.values()) == [10, 10, 10, 10]
    assert list(on_data[0].counts.values()) == [4, 8, 12, 16]
    assert list(on_data[0].weights.values()) == weights


def test_gradient_strategies_train_and_negative_weights_are_no_quotas(
    problem: Problem, tmp_path: Path
) -> None:
    for name in ("pcgrad", "mgda"):
        history = trainer(problem, tmp_path / name, strategy_of(name), intervals=1).run()
        assert all(weight > 0 for weight in history[0].weights.values())

    class Negative(mtlweight.LossStrategy):
        def scalarize(self, losses: Tensor) -> Tensor:
            return losses.sum() - 3 * losses[0]

    run = trainer(problem, tmp_path / "negative", Negative(TASKS.names), spend="data")
    with pytest.raises(ValueError, match="task 'mild' is -2"):
        run.run()


def test_the_strategy_gets_the_metric_it_is_given(problem: Problem, tmp_path: Path) -> None:
    dtp = mtlweight.build("dtp", TASKS.names, smoothing=0.0)
    record = trainer(problem, tmp_path / "ssim", dtp, metric="ssim", intervals=1).run()[0]
    assert dtp.metrics == pytest.approx(record.ssim)
    with pytest.raises(ValueError, match="from 0 to 1"):
        trainer(problem, tmp_path / "psnr", mtlweight.build("dtp", TASKS.names)).run()


class Fragile(nn.Module):
    """A network whose output or gradient breaks at given calls."""

    def __init__(self, bad: set[int], where: str) -> None:
        super().__init__()
        self.inner = MODEL.build(0)
        self.bad, self.where, self.calls = bad, where, 0

    def forward(self, images: Tensor) -> Tensor:
        output = self.inner(images)
        if self.training:
            self.calls += 1
            if self.calls in self.bad:
                output = output * (torch.nan if self.where == "loss" else 1.0)
                if self.where == "gradient":
                    output.register_hook(lambda gradient: gradient * torch.inf)
        return output


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_left_out(
    problem: Problem, tmp_path: Path, where: str
) -> None:
    run = trainer(
        problem, tmp_path, strategy_of("dwa"), model=Fragile({2}, where), intervals=1, iterations=3
    )
    record = run.run()[0]
    assert record.skipped == 1
    assert run.strategy.step == (2 if where == "loss" else 3)
    assert parameters(run.learner.model).isfinite().all()
    assert all(loss < 1 for loss in record.losses.values())


def test_ten_bad_steps_in_a_row_end_the_run(problem: Problem, tmp_path: Path) -> None:
    model = Fragile(set(range(3, 99)), "gradient")
    run = trainer(problem, tmp_path, model=model, iterations=20)
    with pytest.raises(TrainingDiverged, match=r"10 steps in a row, up to step 12.*learning_rate"):
        run.run()
    assert parameters(run.learner.model).isfinite().all()


def test_clipping_bounds_the_gradient(problem: Problem, tmp_path: Path) -> None:
    plain = trainer(problem, tmp_path / "plain", intervals=1, iterations=1)
    clipped = trainer(problem, tmp_path / "clipped", intervals=1, iterations=1, clip=1e-3)
    norms = []
    for run in (plain, clipped):
        run.run()
        gradients = [p.grad for p in run.learner.model.parameters() if p.grad is not None]
        norms.append(torch.cat([g.flatten() for g in gradients]).norm().item())
    assert norms[0] > 1e-2
    assert norms[1] == pytest.approx(1e-3, rel=1e-3)


def test_the_average_is_what_is_validated(problem: Problem, tmp_path: Path) -> None:
    averaged = trainer(problem, tmp_path / "a", average=0.9)
    last = trainer(problem, tmp_path / "b", average=0.0)
    averaged.run(), last.run()
    assert torch.equal(parameters(averaged.learner.model), parameters(last.learner.model))
    assert torch.equal(parameters(last.learner.average), parameters(last.learner.model))
    assert averaged.history[-1].psnr != last.history[-1].psnr


def test_schedules() -> None:
    cosine = settings(intervals=10, iterations=10)
    assert cosine.learning_rate_at(0) == 1e-3
    assert cosine.learning_rate_at(50) == pytest.approx(5e-4)
    assert cosine.learning_rate_at(99) < 1e-6
    steps = settings(intervals=10, iterations=10, schedule="multistep", milestones=(0.5, 0.8))
    assert [steps.learning_rate_at(s) for s in (0, 49, 50, 79, 80)] == [
        1e-3,
        1e-3,
        5e-4,
        5e-4,
        2.5e-4,
    ]


def test_logs(problem: Problem, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    history = trainer(problem, tmp_path, run=runtime(tensorboard=True), intervals=2).run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "step" in line] == [2, 4, 6]
    assert [IntervalRecord(**line) for line in lines if "interval" in line] == history
    assert list((tmp_path / "tensorboard").iterdir())


def test_bad_settings_say_what_is_wrong(problem: Problem, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown"):
        settings(unknown=1)
    with pytest.raises(ValueError, match="increase"):
        settings(milestones=(0.5, 0.2))
    with pytest.raises(ValueError, match="auto, cpu, cuda"):
        runtime(device="toaster")
    with pytest.raises(ValueError, match="multiple of the scale 2, got 33"):
        trainer(problem, tmp_path, crop=33)
    with pytest.raises(ValueError, match="`context` must be a multiple of the scale 2, got 3"):
        trainer(problem, tmp_path, context=3)
    with pytest.raises(ValueError, match="at least 48 x 48 pixels"):
        trainer(problem, tmp_path, context=16)
    with pytest.raises(ValueError, match="must be built for the tasks"):
        trainer(problem, tmp_path, mtlweight.Equal(3))
    with pytest.raises(ValueError, match="'depth'"):
        ModelSettings(options={"depth": 3}).build(0)


def test_a_checkpoint_of_another_run_is_refused(problem: Problem, tmp_path: Path) -> None:
    with pytest.raises(TrainingInterrupted):
        trainer(problem, tmp_path, observer=StopAt(1)).run()
    with pytest.raises(ValueError, match=r"`learning_rate` = 0\.001"):
        trainer(problem, tmp_path, learning_rate=0.1).load()
    with pytest.raises(ValueError, match="`strategy` = 'Equal'"):
        trainer(problem, tmp_path, strategy_of("dwa")).load()
    (tmp_path / CHECKPOINT).write_bytes(b"torn")
    with pytest.raises(ValueError, match="not a checkpoint"):
        trainer(problem, tmp_path).load()
