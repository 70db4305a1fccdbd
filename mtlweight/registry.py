"""Strategies by name, for command lines and configuration files."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any

from mtlweight.options import Tasks
from mtlweight.strategies import STRATEGIES
from mtlweight.strategy import Strategy

GROUP = "mtlweight.strategies"


def available() -> dict[str, type[Strategy]]:
    """Returns every strategy by name: ours, and those of installed packages.

    Another package adds its own by an entry point of the group `mtlweight.strategies`. Names of
    ours can't be taken by others.

    Raises:
        ImportError: An entry point can't be loaded.
        TypeError: An entry point is not a strategy class.
    """
    found = {}
    for point in entry_points(group=GROUP):
        strategy = point.load()
        if not (isinstance(strategy, type) and issubclass(strategy, Strategy)):
            raise TypeError(
                f"The entry point {point.name!r} of {GROUP} is {strategy!r}, not a Strategy class."
            )
        found[_normal(point.name)] = strategy
    return dict(sorted((found | STRATEGIES).items()))


def find(name: str) -> type[Strategy]:
    """Returns the strategy class of a name; hyphens count as underscores.

    Raises:
        ValueError: No strategy has the name; the message lists those there are.
    """
    strategies = available()
    if _normal(name) not in strategies:
        close = get_close_matches(_normal(name), strategies, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"No strategy is called {name!r}.{hint} There are {', '.join(strategies)}."
        )
    return strategies[_normal(name)]


def build(name: str, tasks: Tasks, **options: Any) -> Strategy:
    """Returns the strategy of a name.

    Args:
        name: One of `available()`, with hyphens or underscores.
        tasks: The names of the tasks, or their number.
        options: Those of the strategy's constructor; strings are converted.

    Raises:
        ValueError: No strategy has the name, or an option is unknown, missing or out of range.
    """
    return find(name)(tasks, **options)


def _normal(name: str) -> str:
    return name.strip().lower().replace("-", "_")
