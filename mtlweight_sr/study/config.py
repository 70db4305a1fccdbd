"""The settings of an ablation, checked before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mtlweight_sr.data import BundledPhotographs, PhotographFolder, Photographs
from mtlweight_sr.settings import ModelSettings, TrainingSettings
from mtlweight_sr.study.arms import Arm, Options, build_strategy, needs_references
from mtlweight_sr.tasks import PRESETS as TASK_PRESETS
from mtlweight_sr.tasks import preset

__all__ = ["AblationConfig", "task_preset"]


def task_preset(tasks: str) -> str:
    """The task preset that a user means: `4` stands for `paper4`, and so on.

    Raises:
        ValueError: there is no such preset; the message lists those there are.
    """
    name = f"paper{tasks}" if tasks.isdigit() else tasks
    if name not in TASK_PRESETS:
        numbers = [known[5:] for known in TASK_PRESETS if known.startswith("paper")]
        raise ValueError(
            f"`tasks` must be one of {', '.join(numbers)}, or of {', '.join(TASK_PRESETS)}, got "
            f"{tasks!r}."
        )
    return name


class AblationConfig(BaseModel):
    """What is compared, on what, and where the results go.

    Attributes:
        name: of the preset it came from, for the report.
        arms: strategies and how their weights are spent.
        baseline: the arm that gains are measured against, or None.
        options: by strategy.
        tasks: a task preset.
        data: folder of HR photographs to train on; None takes the bundled ones.
        val: folder of HR photographs to validate on; given exactly when `data` is.
        val_crop: side of the central crop of validation images; None keeps whole images.
        val_images: how many of them, from the first; None takes all.
        model: the network.
        training: the training; seed, spend and metric are each run's own.
        seeds: one run of every arm each. With the same seed all arms have the same
            initialisation, order of images and crops.
        references: JSON file of single-task references; None trains them where a strategy needs
            them, with the first seed.
        lpips: network of the perceptual distance, or `"none"`.
        lpips_backbone: file of its features; None looks into torchvision's cache.
        out: folder of the results.
        notes: remarks for the report.

    Raises:
        ValueError: a setting is refused; the message says what is allowed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "custom"
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)]
    baseline: Arm | None = Arm(strategy="equal", spend="loss")
    options: Options = {}
    tasks: str = "paper4"
    data: Path | None = None
    val: Path | None = None
    val_crop: Annotated[int, Field(ge=1)] | None = None
    val_images: Annotated[int, Field(ge=1)] | None = None
    model: ModelSettings = ModelSettings()
    training: TrainingSettings
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    references: Path | None = None
    lpips: Literal["alex", "vgg", "squeeze", "none"] = "alex"
    lpips_backbone: Path | None = None
    out: Path = Path("results")
    notes: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _with_baseline(cls, values: Any) -> Any:
        """Puts the baseline first among the arms."""
        if not isinstance(values, dict) or not values.get("arms"):
            return values
        baseline = values.get("baseline", cls.model_fields["baseline"].default)
        arms = [arm for arm in values["arms"] if arm != baseline]
        return values | {"arms": tuple(arms if baseline is None else [baseline, *arms])}

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = preset(task_preset(self.tasks), self.model.scale).names
        if len(set(self.arms)) < len(self.arms) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"arms and seeds must differ, got {', '.join(map(str, self.arms))} with seeds "
                f"{', '.join(map(str, self.seeds))}"
            )
        if unknown := set(self.options) - {arm.strategy for arm in self.arms}:
            raise ValueError(f"options are given for {unknown.pop()!r}, which is no arm")
        for arm in self.arms:
            build_strategy(arm, names, self.options.get(arm.strategy, {}))
        self.model.build(0)
        if (self.data is None) != (self.val is None):
            raise ValueError("`data` and `val` must both be given, or none: they must not overlap")
        if self.data and self.val and self.data.resolve() == self.val.resolve():
            raise ValueError(f"`data` and `val` must be different folders, got {self.data} twice")
        for name in ("crop", "context"):
            if (value := getattr(self.training, name)) % self.model.scale:
                raise ValueError(
                    f"`{name}` must be a multiple of the scale {self.model.scale}, got {value}"
                )
        least = self.training.iterations * self.training.batch_size
        if least < len(names):
            raise ValueError(
                f"an interval must hold a sample of each of the {len(names)} tasks, got {least}"
            )
        return self

    @property
    def needs_references(self) -> bool:
        """Whether an arm reads single-task references."""
        return any(needs_references(arm.strategy) for arm in self.arms)

    def photographs(self) -> tuple[Photographs, Photographs]:
        """The photographs to train and to validate on.

        Raises:
            FileNotFoundError: a folder does not exist or has no images.
            ValueError: images cannot be read or are too small.
        """
        if self.data is None or self.val is None:
            return BundledPhotographs("train"), BundledPhotographs("val")
        side = self.training.side
        return PhotographFolder(self.data, minimum_size=side), PhotographFolder(self.val)
