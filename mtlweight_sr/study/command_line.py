"""From the words of a command line to the settings of an ablation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mtlweight_sr.models import available_models
from mtlweight_sr.settings import ModelSettings, TrainingSettings
from mtlweight_sr.study.arms import Arm, parse_arms, parse_options
from mtlweight_sr.study.config import AblationConfig, task_preset
from mtlweight_sr.study.presets import PRESETS
from mtlweight_sr.tasks import preset

__all__ = ["ablation_config"]

_FOCAL = "focal_achievement"


def ablation_config(
    name: str,
    *,
    strategy: str | None,
    spend: str | None,
    tasks: str,
    model: str,
    model_options: Sequence[str],
    scale: int | None,
    training: Mapping[str, Any],
    seeds: int | None,
    gamma: float | None,
    options: Sequence[str],
    baseline: bool,
    **others: Any,
) -> AblationConfig:
    """Makes the settings of an ablation from a preset and what overrides it.

    Args:
        name: the preset.
        strategy: as `parse_arms` reads it; None takes the preset's, and so for each None below.
        spend: as `parse_arms` reads it.
        tasks: as `task_preset` reads it.
        model: the name of the network.
        model_options: such as `channels=32`, over those of the preset.
        scale: 2 or 4.
        training: settings of the training; those that are None are the preset's.
        seeds: how many, from 0.
        gamma: the focus of `focal_achievement`.
        options: as `parse_options` reads them.
        baseline: whether equal weights are run too, to measure gains against.
        others: further settings; those that are None are the preset's or the default.

    Raises:
        ValueError: something is unknown or out of range; the message says what is allowed.
    """
    if name not in PRESETS:
        raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}, got {name!r}.")
    base = PRESETS[name]
    if base.get("needs_data") and others.get("data") is None:
        raise ValueError(
            f"The preset {name!r} is a training of days: give it --data and --val, folders of HR "
            "photographs such as DIV2K, Flickr2K and OST."
        )
    if model not in base["model"]:
        raise ValueError(f"`model` must be one of {', '.join(available_models())}, got {model!r}.")
    scale = base["scale"] if scale is None else scale
    if scale not in (2, 4):
        raise ValueError(f"`scale` must be 2 or 4, got {scale}.")
    seeds = base["seeds"] if seeds is None else seeds
    if seeds < 1:
        raise ValueError(f"`seeds` must be at least 1, got {seeds}.")
    chosen = base["strategy"] if strategy is None else strategy
    spend = base["spend"] if spend is None else spend
    names = preset(task_preset(tasks), scale).names
    # Twice: which strategies there are says where options go, and options which can be built.
    arms, _ = parse_arms(chosen, spend, names, {})
    everything = [*(arm.strategy for arm in arms), *(["fixed"] if "all" in chosen else [])]
    wanted = parse_options(options, [*everything, *(["equal"] if baseline else [])])
    if _FOCAL in everything:
        focus = base["gamma"] if gamma is None else gamma
        wanted[_FOCAL] = {"gamma": focus} | wanted.get(_FOCAL, {})
    elif gamma is not None:
        raise ValueError(f"`gamma` is an option of {_FOCAL}, which is not among the strategies.")
    arms, notes = parse_arms(chosen, spend, names, wanted)
    equal = Arm(strategy="equal", spend="loss") if baseline else None
    if equal is not None and equal not in arms:
        notes.append("Equal weights were added as the baseline.")
    return AblationConfig(
        name=name,
        arms=arms,
        baseline=equal,
        options=wanted,
        tasks=tasks,
        model=_model(model, scale, base["model"][model], model_options),
        training=TrainingSettings(
            **(base["training"] | {k: v for k, v in training.items() if v is not None})
        ),
        seeds=tuple(range(seeds)),
        notes=tuple(notes),
        **({"val_crop": base.get("val_crop")} | {k: v for k, v in others.items() if v is not None}),
    )


def _model(
    name: str, scale: int, chosen: Mapping[str, Any], options: Sequence[str]
) -> ModelSettings:
    """The network of a preset, with options of the user's over its own."""
    all_options = chosen.get("options", {}) | _numbers(options)
    return ModelSettings.model_validate(
        {**chosen, "name": name, "scale": scale, "options": all_options}
    )


def _numbers(options: Sequence[str]) -> dict[str, Any]:
    numbers = {}
    for option in options:
        name, _, value = option.partition("=")
        try:
            numbers[name.strip()] = json.loads(value)
        except ValueError:
            raise ValueError(
                f"An option of the model is written as channels=32, got {option!r}."
            ) from None
    return numbers
