"""Strategies as users name them: on command lines, with their options, built for a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict

from mtlweight import OptionError, Strategy, available, build
from mtlweight.options import options_of
from mtlweight.registry import find
from mtlweight_sr.settings import Metric, Spend

__all__ = [
    "METRICS",
    "Arm",
    "Options",
    "build_strategy",
    "needs_references",
    "option_names",
    "parse_arms",
    "parse_options",
]

Options = dict[str, dict[str, Any]]
"""Options by strategy."""

METRICS: Mapping[str, Metric] = {"dtp": "ssim"}
"""What a strategy reads where it isn't PSNR-Y in dB: DTP needs metrics in (0, 1], and SSIM-Y is one
(the choice is ours)."""

_REFERENCE = 30.0  # stands in while options are checked, before references are there


class Arm(BaseModel):
    """One arm of a comparison.

    Attributes:
        strategy: its registered name.
        spend: whether its weights are spent on losses or on data.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: str
    spend: Spend

    def __str__(self) -> str:
        return f"{self.strategy} ({self.spend})"

    @property
    def metric(self) -> Metric:
        """The metric that its strategy reads."""
        return METRICS.get(self.strategy, "psnr")

    def folder(self, seed: int) -> str:
        """The name of the folder of its run with a seed."""
        return f"{self.strategy}-{self.spend}-s{seed}"


def option_names(strategy: str) -> list[str]:
    """The names of a strategy's options, references aside, which are found or trained."""
    return [name for name in options_of(find(strategy)).model_fields if name != "references"]


def needs_references(strategy: str) -> bool:
    """Whether a strategy compares tasks with single-task networks."""
    return "references" in options_of(find(strategy)).model_fields


def build_strategy(
    arm: Arm,
    tasks: Sequence[str],
    options: Mapping[str, Any],
    *,
    seed: int = 0,
    references: Mapping[str, float] | None = None,
) -> Strategy:
    """Builds the strategy of an arm.

    Args:
        arm: names it.
        tasks: the names of the tasks.
        options: of its constructor; strings are converted.
        seed: given to strategies that draw at random, unless the options hold one.
        references: given to those that read them.

    Raises:
        ValueError: an option is unknown, missing or out of range.
    """
    given = dict(options)
    if "seed" in option_names(arm.strategy):
        given.setdefault("seed", seed)
    if needs_references(arm.strategy):
        given["references"] = dict.fromkeys(tasks, _REFERENCE) if references is None else references
    return build(arm.strategy, tasks, **given)


def parse_arms(
    strategies: str, spend: str, tasks: Sequence[str], options: Options
) -> tuple[tuple[Arm, ...], list[str]]:
    """Reads the arms of a comparison.

    Args:
        strategies: names with commas between them, or `all`; a name may end in `:loss` or `:data`
            to be spent that way alone.
        spend: `loss`, `data`, `loss,data` or `both`, for the names that do not say it themselves.
        tasks: the names of the tasks.
        options: by strategy. With `all`, strategies that cannot be built with them are left out.

    Returns:
        The arms, and a note on each strategy that was left out.

    Raises:
        ValueError: a name or a way to spend is unknown.
    """
    spends = _spends(spend)
    notes: list[str] = []
    arms: list[Arm] = []
    for word in (word.strip() for word in strategies.split(",") if word.strip()):
        name, _, own = word.partition(":")
        ways = _spends(own) if own else spends
        if name == "all":
            for each in available():
                try:
                    build_strategy(Arm(strategy=each, spend="loss"), tasks, options.get(each, {}))
                except OptionError as error:
                    notes.append(f"{each} is left out: {error}")
                    continue
                arms += [Arm(strategy=each, spend=way) for way in ways]
            continue
        find(name)
        arms += [Arm(strategy=_normal(name), spend=way) for way in ways]
    if not arms:
        raise ValueError(f"No strategy in {strategies!r}: choose from {', '.join(available())}.")
    return tuple(dict.fromkeys(arms)), notes


def parse_options(settings: Iterable[str], strategies: Iterable[str]) -> Options:
    """Reads options such as `temperature=1.5`, `dwa.temperature=1.5` or `fixed.weights=1,2,3,4`.

    An option without a strategy goes to every chosen strategy that has it.

    Args:
        settings: the options as given.
        strategies: the names of the chosen strategies.

    Returns:
        The options by strategy; lists of numbers as lists, everything else as strings, which the
        strategies convert and check.

    Raises:
        ValueError: an option is malformed, or no chosen strategy has it; the message lists those
            there are.
    """
    chosen = sorted({_normal(name) for name in strategies})
    options: Options = {name: {} for name in chosen}
    for setting in settings:
        path, separator, value = setting.partition("=")
        owner, _, option = path.strip().rpartition(".")
        if not separator or not option:
            raise ValueError(f"An option is written as temperature=1.5, got {setting!r}.")
        owners = [_normal(owner)] if owner else chosen
        having = [name for name in owners if name in chosen and option in option_names(name)]
        if not having:
            known = "; ".join(f"{name}: {', '.join(option_names(name))}" for name in chosen)
            raise ValueError(
                f"No chosen strategy has the option {path.strip()!r}. There are {known}."
            )
        for name in having:
            options[name][option] = _value(value.strip())
    return {name: found for name, found in options.items() if found}


def _value(text: str) -> Any:
    if "," not in text:
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"A list is written as numbers with commas, got {text!r}.") from None


def _spends(spend: str) -> list[Spend]:
    words = [word.strip() for word in spend.replace("both", "loss,data").split(",")]
    known = get_args(Spend)
    if unknown := [word for word in words if word not in known]:
        raise ValueError(
            f"Weights are spent on {', '.join(known)}, loss,data or both, got {unknown[0]!r}."
        )
    return [way for way in known if way in words]


def _normal(name: str) -> str:
    return name.strip().lower().replace("-", "_")
