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
Seed = Annotated[int, Field(ge=0)]

Tasks = int | Sequence[str]
Rescale = Literal["none", "one", "tasks", "equal-norm"]
Check = Literal["auto", "now"]
Heads = Literal["paper", "plain", "weighted"]


class Options(TypedDict, total=False):
    """The options that every strategy takes.

    `rescale` fixes the length of the weights: `"none"` keeps the paper's, `"one"` makes them sum to
    one, `"tasks"` to their number, `"equal-norm"` gives the shared gradient the length that equal
    weights would give it. `check="now"` looks at values at once on every device; by default an
    accelerator is never waited for, and a bad value is reported one step later.
    """

    rescale: Rescale
    check: Check


class GradientOptions(Options, total=False):
    """The options of strategies that read gradients.

    `heads` says what multiplies the loss of a task in the gradient of what only that task uses:
    `"paper"` is what its authors do, `"plain"` one, `"weighted"` the task's weight.
    """

    heads: Heads


class OptionError(ValueError, TypeError):
    """An option of a strategy is unknown, missing, of the wrong type or out of range."""


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
    """Returns the constructor's parameters after `self` and `tasks`."""
    return dict(list(inspect.signature(cls.__init__).parameters.items())[2:])  # type: ignore[misc]


@functools.cache
def options_of(cls: type) -> type[BaseModel]:
    """Returns the pydantic model of a strategy's options, made from its constructor's signature."""
    hints = get_type_hints(cls.__init__, include_extras=True)  # type: ignore[misc]
    fields: dict[str, Any] = {}
    for name, parameter in _parameters(cls).items():
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
        return f"{cls.__name__} needs `{name}`: call {cls.__name__}(tasks, {name}=...)."
    return f"{cls.__name__}: `{name}` = {first['input']!r} is refused: {first['msg']}."


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
        options: dict[str, Any] = dict(kwargs)
        given = list(args)
        first = list(inspect.signature(cls.__init__).parameters)[1]  # `tasks`, or what is wrapped
        if first in options:
            given.insert(0, options.pop(first))
        if not given:
            raise OptionError(f"{cls.__name__} needs `{first}`: call {cls.__name__}({first}, ...).")
        positional = [
            name for name, p in _parameters(cls).items() if p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        if len(given) - 1 > len(positional):
            raise OptionError(
                f"{cls.__name__} takes {', '.join([first, *positional])} by position and "
                f"everything else by name, got {given!r}."
            )
        options |= dict(zip(positional, given[1:], strict=False))
        init(self, given[0], **check_options(cls, options))  # type: ignore[arg-type]

    return checked_init  # type: ignore[return-value]
