"""The settings of a training run, validated, frozen, and ready to be hashed or written down."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import nn

from mtlweight_sr.data.loader import CACHE_BYTES, Cache
from mtlweight_sr.models import build_model

__all__ = ["Metric", "ModelSettings", "RuntimeSettings", "Spend", "TrainingSettings"]

Spend = Literal["loss", "data"]
Metric = Literal["psnr", "ssim"]

_Count = Annotated[int, Field(ge=1)]
_Decay = Annotated[float, Field(ge=0, lt=1)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelSettings(_Settings):
    """A network by name.

    Attributes:
        name: one of `mtlweight_sr.models.available_models()`.
        scale: upscaling factor, 2 or 4 (default).
        options: keyword arguments of the network, such as `channels` and `blocks`.
    """

    name: str = "srresnet"
    scale: Literal[2, 4] = 4
    options: dict[str, Any] = {}

    def build(self, seed: int) -> nn.Module:
        """Returns the network, initialised by `seed` alone; torch's generator stays as it was.

        Raises:
            ValueError: the name or an option is unknown or out of range.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                return build_model(self.name, scale=self.scale, **self.options)
            except TypeError as error:
                raise ValueError(
                    f"`options` of the model {self.name!r} are {self.options}: {error}."
                ) from None


class TrainingSettings(_Settings):
    r"""What determines the outcome of a training run, beside its data, network and strategy.

    Attributes:
        intervals: how often the network is validated and the tasks are weighed anew.
        iterations: training steps per interval.
        batch_size: samples per step, at least one.
        crop: side of the HR crops in pixels, a multiple of the scale.
        context: how much larger than that the squares are that are cut out and degraded, in
            pixels, a multiple of the scale; the crop is cut out of them after that, at a place of
            its own. It keeps the borders of filters out of the crops, and moves the blocks of JPEG
            about in them; Real-ESRGAN has 144, and 32 costs half as much. 0 (default) degrades the
            crops themselves.
        spend: `"loss"` weighs the losses of equally many samples per task; `"data"` turns the
            weights into numbers of samples, and weighs every sample alike.
        metric: what the strategy gets at the end of an interval: `"psnr"` (dB) or `"ssim"`.
        optimizer: `"adam"` or `"adamw"`.
        learning_rate: the first one.
        betas: decay of the optimizer's moments.
        weight_decay: coupled in `"adam"`, decoupled in `"adamw"`.
        schedule: `"cosine"` falls to zero over the run; `"multistep"` multiplies by `decay` at
            each of `milestones`, and is constant without any.
        milestones: fractions of the run, in (0, 1).
        decay: factor of a milestone.
        average: decay of the exponential moving average of the network, which is what is
            validated. Step $t$ uses $\min(\text{average}, t / (t + 9))$, so that short runs do not
            remember their initialisation. 0 validates the network itself.
        clip: largest norm of the gradient; None (default) leaves it as it is.
        amp: whether the network runs in bfloat16 autocast.
        seed: of the order of samples, the crops and the degradations.
    """

    intervals: _Count
    iterations: _Count
    batch_size: _Count
    crop: _Count
    context: Annotated[int, Field(ge=0)] = 0
    spend: Spend = "loss"
    metric: Metric = "psnr"
    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: _Positive = 2e-4
    betas: tuple[_Decay, _Decay] = (0.9, 0.99)
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    schedule: Literal["cosine", "multistep"] = "cosine"
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    decay: _Positive = 0.5
    average: _Decay = 0.999
    clip: _Positive | None = None
    amp: bool = False
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("milestones")
    @classmethod
    def _increasing(cls, milestones: tuple[float, ...]) -> tuple[float, ...]:
        if list(milestones) != sorted(set(milestones)):
            raise ValueError(f"milestones must increase, got {milestones}")
        return milestones

    @property
    def steps(self) -> int:
        """Training steps in all."""
        return self.intervals * self.iterations

    @property
    def side(self) -> int:
        """Side of the squares that are cut out of photographs."""
        return self.crop + self.context

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        done = step / self.steps
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        return self.learning_rate * self.decay ** sum(done >= m for m in self.milestones)

    def average_at(self, step: int) -> float:
        """The decay of the moving average at a step, counted from 0."""
        return min(self.average, (step + 1) / (step + 10))


class RuntimeSettings(_Settings):
    """How a run is carried out. Nothing here changes its outcome, the kind of device apart.

    Attributes:
        device: as torch names it; `"auto"` takes an accelerator of CUDA's kind where there is one.
        workers: processes that load crops; 0 loads in the training process.
        cache: where decoded photographs are kept, as `CropLoader` has it: `"none"` decodes one for
            every crop, `"host"` and `"device"` decode each once.
        cache_bytes: the most that they may take; a set that takes more is refused.
        checkpoint_every: steps between two checkpoints; one is also written after each interval.
        log_every: steps between two lines on training in the log.
        tensorboard: whether to write TensorBoard's files too.
    """

    device: str = "auto"
    workers: Annotated[int, Field(ge=0)] = 0
    cache: Cache = "none"
    cache_bytes: _Count = CACHE_BYTES
    checkpoint_every: _Count = 500
    log_every: _Count = 50
    tensorboard: bool = True

    @field_validator("device")
    @classmethod
    def _known(cls, device: str) -> str:
        if device != "auto":
            try:
                torch.device(device)
            except RuntimeError:
                raise ValueError(
                    f"device must be auto, cpu, cuda, cuda:0 or the like, got {device!r}"
                ) from None
        return device

    def torch_device(self) -> torch.device:
        """The device to train on.

        Raises:
            ValueError: CUDA is asked for and not there.
        """
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        device = torch.device(self.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"`device` = {self.device!r}, but torch finds no CUDA; use cpu.")
        return device
