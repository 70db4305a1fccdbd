"""The options of a strategy: read off its constructor, and checked before it is built."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import (
    Annotated,
    Any,
    Concatenate,
    Literal,
    ParamSpec,
    TypedDict,
    TypeVar,
    get_args,
    get_type_hints,
)

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Past = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]

Tasks = int | Sequence[str]
Rescale = Literal["none", "one", "tasks", "equal-norm"]
Check = Literal["auto", "now"]
Heads = Literal["paper", "plain", "weighted"]


class Options(TypedDict, total=False):
    """The options that every strategy takes.

    `rescale` fixes the length of the weights: `"none"` keeps the paper's, `"one"` makes them sum to
    one, `"tasks"` to their number, `"equal-norm"` gives the shared gradient the length that equal
    weights would give it. `check="now"` looks at losses at once on every device; by default no
    step waits for an accelerator to do so, and a bad loss is reported in a later step, by
    strategies that read gradients at once.
    """

    rescale: Rescale
    check: Check


class GradientOptions(Options, total=False):
    """The options of strategies that read gradients.

    `heads` says what multiplies the loss of a task in the gradient of what only that task uses:
    `"paper"` is what its authors do, `"plain"` one, `"weighted"` the task's weight.
    """

    heads: Heads


class GramOptions(GradientOptions, total=False):
    """The options of strategies that read only the inner products of gradients.

    `chunk` is the largest number of entries of a task gradient to hold at a time: memory of T x
    chunk numbers in place of T x P, for a pass of each task per chunk, and one more at the end. By
    default all are held, and those of features always.
    """

    chunk: Count | None


class OptionError(ValueError, TypeError):
    """An option of a strategy is unknown, missing, of the wrong type or out of range."""


def main_task(tasks: tuple[str, ...], main: str | None) -> int:
    """Returns the place of the main task, by default the first.

    Raises:
        OptionError: There is no such task.
    """
    if main is not None and main not in tasks:
        raise OptionError(f"`main` = {main!r} is no task: the tasks are {', '.join(tasks)}.")
    return 0 if main is None else tasks.index(main)


def task_names(tasks: Tasks) -> tuple[str, ...]:
    """Returns the names of the tasks; a number T gives `"0"` to `"T-1"`.

    Raises:
        OptionError: `tasks` is not a positive number or a list of different, non-empty names.
    """
    if isinstance(tasks, int) and not isinstance(tasks, bool):
        if tasks < 1:
            raise OptionError(f"`tasks` must be at least 1, got {tasks}.")
        return tuple(str(task) for task in range(tasks))
    if isinstance(tasks, str) or not isinstance(tasks, Sequence):
        raise OptionError(f"`tasks` must be a number or a list of names, got {tasks!r}.")
    names = tuple(tasks)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise OptionError(f"`tasks` must be a number or a list of names, got {tasks!r}.")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise OptionError(f"`tasks` must differ in name, but {repeated[0]!r} is there twice.")
    return names


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Returns the constructor's parameters after `self`."""
    return dict(list(inspect.signature(cls.__init__).parameters.items())[1:])  # type: ignore[misc]


def _call(cls: type) -> str:
    """Returns how to call the constructor with what it can't do without."""
    needed = [
        name if p.kind is p.POSITIONAL_OR_KEYWORD else f"{name}=..."
        for name, p in _parameters(cls).items()
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD
    ]
    return f"{cls.__name__}({', '.join(needed)})"


@functools.cache
def options_of(cls: type) -> type[BaseModel]:
    """Returns the pydantic model of a strategy's options, made from its constructor's signature.

    Tasks are no option: `task_names` reads them.
    """
    hints = get_type_hints(cls.__init__, include_extras=True)  # type: ignore[misc]
    fields: dict[str, Any] = {}
    for name, parameter in _parameters(cls).items():
        if name == "tasks":
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            (common,) = get_args(hints[name])  # Unpack[Options]
            fields |= {k: (v, None) for k, v in get_type_hints(common, include_extras=True).items()}
        elif parameter.default is parameter.empty:
            fields[name] = (hints[name], ...)
        else:
            fields[name] = (hints[name], parameter.default)
    # A `str` is a valid sequence of names to Python, but never what a number should be read from.
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    return create_model(f"{cls.__name__}Options", __config__=config, **fields)


def check_options(cls: type, options: dict[str, Any]) -> dict[str, Any]:
    """Returns the given options, validated and converted.

    Raises:
        OptionError: Names the option, the value and what is allowed.
    """
    model = options_of(cls)
    try:
        checked = model.model_validate(options)
    except ValidationError as error:
        raise OptionError(_explain(cls, model, error)) from None
    return {name: getattr(checked, name) for name in options}


def _explain(cls: type, model: type[BaseModel], error: ValidationError) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0])
    known = sorted(model.model_fields)
    if first["type"] == "extra_forbidden":
        close = get_close_matches(name, known, n=1)
        hint = f" Did you mean `{close[0]}`?" if close else ""
        return f"{cls.__name__} has no option `{name}`.{hint} Its options are {', '.join(known)}."
    if first["type"] == "missing":
        return f"{cls.__name__} needs `{name}`: call {_call(cls)}."
    value = _shown(first["input"])
    if first["type"] == "is_instance_of":
        kind = first["ctx"]["class"]
        return f"{cls.__name__}: `{name}` must be a {kind}, such as Equal(tasks), got {value}."
    return f"{cls.__name__}: `{name}` = {value} is refused: {first['msg']}."


def _shown(value: Any) -> str:
    return " ".join(repr(value).split())  # that of a module has many lines


P = ParamSpec("P")
S = TypeVar("S")


def checked(init: Callable[Concatenate[S, P], None]) -> Callable[Concatenate[S, P], None]:
    """Makes a strategy's constructor check its options, whoever calls it."""

    @functools.wraps(init)
    def checked_init(self: S, *args: P.args, **kwargs: P.kwargs) -> None:
        cls = type(self)
        if cls.__init__ is not checked_init:  # called by a subclass, which has checked
            init(self, *args, **kwargs)
            return
        names = [n for n, p in _parameters(cls).items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        if len(args) > len(names):
            raise OptionError(
                f"{cls.__name__} takes {', '.join(names)} by position and everything else by name, "
                f"got {_shown(args)}."
            )
        options: dict[str, Any] = dict(zip(names, args, strict=False))
        if twice := sorted(options.keys() & kwargs.keys()):
            raise OptionError(
                f"{cls.__name__} got `{twice[0]}` twice, by position and by name: give it once."
            )
        options |= kwargs
        if "tasks" not in names:
            init(self, **check_options(cls, options))  # type: ignore[call-arg]
            return
        if "tasks" not in options:
            raise OptionError(f"{cls.__name__} needs `tasks`: call {_call(cls)}.")
        tasks = options.pop("tasks")
        init(self, tasks, **check_options(cls, options))

    return checked_init  # type: ignore[return-value]
