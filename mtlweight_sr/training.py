"""The interval loop: train, validate each task, weigh the tasks anew, spend the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from mtlweight import QuotaSampler, Strategy, rows_by_task, task_means
from mtlweight.running import RunningMean
from mtlweight_sr.data import CropDataset
from mtlweight_sr.data.loader import CropBatch, CropLoader
from mtlweight_sr.data.pace import Pace
from mtlweight_sr.degradation import degrade
from mtlweight_sr.degradation.crop import crop_pair
from mtlweight_sr.evaluation import evaluate
from mtlweight_sr.learner import Learner, TrainingDiverged
from mtlweight_sr.problem import Problem
from mtlweight_sr.settings import RuntimeSettings, Spend, TrainingSettings
from mtlweight_sr.surroundings import (
    Board,
    deterministic,
    interruptible,
    tensorboard,
)
from mtlweight_sr.training_files import JsonLines, load_checkpoint, save_checkpoint

__all__ = [
    "CHECKPOINT",
    "IntervalRecord",
    "Observer",
    "Trainer",
    "TrainingDiverged",
    "TrainingInterrupted",
]

CHECKPOINT = "checkpoint.pt"
"""Name of the checkpoint in the folder of a run."""
_STREAM = 2  # of the degradations in training; validation sets use 0 and 1


class IntervalRecord(BaseModel):
    """What is known at the end of an interval, by task name where it is one per task.

    Attributes:
        interval: its number, from 1.
        psnr: PSNR-Y of the averaged network in dB.
        ssim: SSIM-Y of the averaged network.
        losses: mean training loss over the interval's steps.
        weights: mean weight over the interval's steps, as the strategy reports it.
        counts: the number of training samples.
        skipped: steps of the whole run so far that were left out as not finite.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    interval: int
    psnr: dict[str, float]
    ssim: dict[str, float]
    losses: dict[str, float]
    weights: dict[str, float]
    counts: dict[str, int]
    skipped: int

    def shares(self, spend: Spend) -> dict[str, float]:
        """The share of each task in the weights, or in the samples where weights are quotas."""
        spent: dict[str, float] = {**(self.counts if spend == "data" else self.weights)}
        total = sum(spent.values())
        return {name: value / total if total else 0.0 for name, value in spent.items()}


class TrainingInterrupted(RuntimeError):  # noqa: N818 - it is no error
    """The run was asked to stop, and has written a checkpoint to go on from."""


class Observer:
    """Is told how a run goes; override what is of interest."""

    def on_start(self, trainer: Trainer) -> None:
        """A run starts or goes on."""

    def on_step(self, trainer: Trainer) -> None:
        """A step is done, and counted in `trainer.step`."""

    def on_interval(self, trainer: Trainer, record: IntervalRecord) -> None:
        """An interval is done."""


class Trainer:
    """Trains a network on several tasks, whose weights a strategy sets.

    Each step degrades a batch of crops, each by its own task and key, and takes the L1 loss of
    every sample. Each interval ends with a validation of the network's moving average on every
    task, whose metrics the strategy reads. With `spend="data"` its weights then become the
    numbers of samples of the next interval.

    A run that was interrupted and loaded ends in the same bits as one that was not, on the same
    kind of machine, whatever the number of workers and wherever photographs are cached.

    Args:
        model: the network; it is moved to the device and trained in place.
        strategy: the weights of the tasks, for exactly the names of `problem.tasks`.
        problem: tasks, photographs and validation set.
        settings: what determines the outcome.
        folder: where checkpoint, log and TensorBoard's files go.
        runtime: how it is carried out.
        observer: is told how the run goes.

    Attributes:
        learner: the network, its moving average and optimizer.
        step: the number of steps so far.
        history: the intervals so far.
        loader: where the crops come from.
        pace: the speed of the interval that runs, or ran last, and its waiting for data. It goes
            to `pace.jsonl`, apart from the log, which is the same in every run.

    Raises:
        ValueError: the strategy has other tasks, or sizes do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        strategy: Strategy,
        problem: Problem,
        settings: TrainingSettings,
        *,
        folder: Path | str,
        runtime: RuntimeSettings | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.names = tuple(problem.tasks.names)
        _check(strategy, problem, settings)
        self.problem, self.settings = problem, settings
        self.runtime = RuntimeSettings() if runtime is None else runtime
        self.device = self.runtime.torch_device()
        self.folder = Path(folder)
        self.observer = Observer() if observer is None else observer
        self.learner = Learner(model.to(self.device), settings)
        self.strategy = strategy.to(self.device).train()
        self.sampler = QuotaSampler.for_generated(
            len(problem.photographs),
            self.names,
            num_samples=settings.iterations * settings.batch_size,
            batch_size=settings.batch_size,
            seed=settings.seed,
        )
        self._spend()
        self.step = 0
        self.history: list[IntervalRecord] = []
        self._losses = RunningMean(len(self.names)).to(self.device)
        self._counts = torch.zeros(len(self.names), dtype=torch.int64)
        self._stop = False
        self._log = JsonLines(self.folder / "log.jsonl")
        self._pace_log = JsonLines(self.folder / "pace.jsonl")
        self.pace = Pace()
        self.loader = CropLoader(
            CropDataset(problem.photographs, settings.side),
            self.sampler,
            device=self.device,
            workers=self.runtime.workers,
            cache=self.runtime.cache,
            cache_bytes=self.runtime.cache_bytes,
        )

    def run(self) -> list[IntervalRecord]:
        """Trains to the end, from the start or from where a loaded checkpoint left off.

        Ctrl-C or SIGTERM finishes the step at hand and writes a checkpoint; a second one stops at
        once.

        Returns:
            The history.

        Raises:
            TrainingInterrupted: it was asked to stop.
            TrainingDiverged: ten steps in a row were not finite.
        """
        wanted = self.runtime.tensorboard
        with (
            interruptible(self.stop),
            deterministic(self.device),
            tensorboard(self.folder / "tensorboard", self.step, wanted) as board,
        ):
            self.observer.on_start(self)
            while len(self.history) < self.settings.intervals:
                # A run may stop after an interval's last step and before its metrics are there.
                if self.sampler.interval == len(self.history):
                    self._train_interval(board)
                self._close_interval(board)
        return self.history

    def stop(self) -> None:
        """Asks the run to write a checkpoint and stop after the step at hand."""
        self._stop = True

    def save(self) -> None:
        """Writes the checkpoint of this folder, whole or not at all."""
        state = {
            "identity": self._identity(),
            "learner": self.learner.state_dict(),
            "strategy": self.strategy.state_dict(),
            "sampler": self.sampler.state_dict(),
            "losses": self._losses.state_dict(),
            "counts": self._counts,
            "step": self.step,
            "history": [record.model_dump() for record in self.history],
            "log_position": self._log.position,
        }
        save_checkpoint(self.folder / CHECKPOINT, state)

    def load(self) -> None:
        """Goes back to the checkpoint of this folder; what was logged after it is dropped.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is of a run with other settings; the message names the difference.
        """
        state = load_checkpoint(self.folder / CHECKPOINT)
        for name, value in self._identity().items():
            if (saved := state["identity"].get(name)) != value:
                raise ValueError(
                    f"The checkpoint in {str(self.folder)!r} is of a run with `{name}` = {saved!r},"
                    f" and this one has {value!r}; use another folder."
                )
        self.learner.load_state_dict(state["learner"])
        self.strategy.load_state_dict(state["strategy"])
        self.sampler.load_state_dict(state["sampler"])
        self._losses.load_state_dict(state["losses"])
        self._counts = state["counts"]
        self.step = state["step"]
        self.history = [IntervalRecord(**record) for record in state["history"]]
        self._log.truncate(state["log_position"])

    def _identity(self) -> dict[str, Any]:
        strategy = {"strategy": type(self.strategy).__name__, "tasks": list(self.names)}
        return self.settings.model_dump(mode="json") | strategy

    def _train_interval(self, board: Board) -> None:
        self.pace = Pace()
        for batch in self.sampler.track(self.pace.watch(self.loader)):
            losses = self._train_on(batch)
            self.step += 1
            if self.step % self.runtime.log_every == 0:
                values = {name: loss.item() for name, loss in losses.items()}
                rate = self.settings.learning_rate_at(self.step - 1)
                self._log.append({"step": self.step, "learning_rate": rate, "losses": values})
            self.observer.on_step(self)
            if self.step % self.runtime.checkpoint_every == 0:
                self.save()
            self._heed()
        pace = self.pace
        self._pace_log.append(
            {
                "step": self.step,
                "steps": pace.steps,
                "seconds": pace.seconds,
                "waiting": pace.waiting,
            }
        )
        board.add_scalar("steps_per_second", pace.steps_per_second, self.step)
        board.add_scalar("waiting_for_data", pace.waiting_share, self.step)

    def _train_on(self, batch: CropBatch) -> dict[str, Tensor]:
        tasks, seeds = batch.tasks, batch.seeds
        hr = batch.images.float() / 255
        lr = degrade(hr, self.problem.tasks.draw(tasks, seeds, self.settings.seed, _STREAM))
        if self.settings.context:
            hr, lr = crop_pair(hr, lr, self.settings.crop, seeds, self.problem.validation.scale)
        sample_losses, losses = self._forward(lr, hr, tasks)
        self._counts += torch.bincount(tasks, minlength=len(self.names))
        # Looked at before the strategy sees them: a bad batch must not enter its state.
        if not sample_losses.isfinite().all():
            self.learner.skip("loss", self.step)
            return losses
        loss = self.strategy(losses)
        if self.settings.spend == "data":
            loss = sample_losses.mean()  # the weights are in the numbers of samples
        if self.learner.learn(loss, self.step):
            present = torch.tensor([self.names.index(name) for name in losses], device=self.device)
            self._losses.add(present, torch.stack(list(losses.values())).detach())
        return losses

    def _forward(self, lr: Tensor, hr: Tensor, tasks: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the losses of the samples, in any order, and of the tasks."""
        if not self.strategy.waits:
            sample_losses = self._absolute_error(lr, hr)
            return sample_losses, task_means(sample_losses, tasks, self.names)
        # One backward pass a task costs no more than one in all where each has its own graph.
        parts = {
            name: self._absolute_error(lr[rows], hr[rows])
            for name, rows in rows_by_task(tasks, self.names).items()
        }
        return torch.cat(list(parts.values())), {name: part.mean() for name, part in parts.items()}

    def _absolute_error(self, lr: Tensor, hr: Tensor) -> Tensor:
        with self._autocast():
            sr = self.learner.model(lr)
        errors: Tensor = (sr.float() - hr).abs().mean((1, 2, 3))
        return errors

    def _close_interval(self, board: Board) -> None:
        scores = evaluate(
            self._restore,
            self.problem.validation,
            self.names,
            device=self.device,
            batch_size=self.settings.batch_size,
            between=self._heed,
        )
        weights = self.strategy.epoch_weights.mean(default=self.strategy.weights)
        losses = self._losses.mean(default=torch.zeros_like(weights))
        record = IntervalRecord(
            interval=len(self.history) + 1,
            psnr={name: scores[name].psnr for name in self.names},
            ssim={name: scores[name].ssim for name in self.names},
            losses=dict(zip(self.names, losses.tolist(), strict=True)),
            weights=dict(zip(self.names, weights.tolist(), strict=True)),
            counts=dict(zip(self.names, self._counts.tolist(), strict=True)),
            skipped=self.learner.skipped,
        )
        self.strategy.end_epoch(getattr(record, self.settings.metric))
        self._spend()
        self._losses.reset()
        self._counts = torch.zeros_like(self._counts)
        self.history.append(record)
        self._log.append(record.model_dump())
        for kind in ("psnr", "ssim", "losses", "weights", "counts"):
            for name, value in getattr(record, kind).items():
                board.add_scalar(f"{kind}/{name}", value, self.step)
        self.save()
        self.observer.on_interval(self, record)

    def _spend(self) -> None:
        if self.settings.spend == "data":
            self.sampler.set_weights(self.strategy.weights)

    def _restore(self, images: Tensor) -> Tensor:
        with self._autocast():
            restored: Tensor = self.learner.average(images)
        return restored

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.amp)

    def _heed(self) -> None:
        if self._stop:
            self._stop = False
            self.save()
            raise TrainingInterrupted(
                f"Stopped at step {self.step} of {self.settings.steps}; "
                f"{str(self.folder / CHECKPOINT)!r} holds everything to go on from."
            )


def _check(strategy: Strategy, problem: Problem, settings: TrainingSettings) -> None:
    names = tuple(problem.tasks.names)
    if strategy.tasks != names:
        raise ValueError(
            f"`strategy` must be built for the tasks {list(names)}, got {list(strategy.tasks)}; "
            "write build(name, problem.tasks.names)."
        )
    for name in ("crop", "context"):
        if (value := getattr(settings, name)) % problem.validation.scale:
            raise ValueError(
                f"`{name}` must be a multiple of the scale {problem.validation.scale}, got {value}."
            )
