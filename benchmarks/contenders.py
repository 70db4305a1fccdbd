"""Who takes the steps: the limits, and every registered strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

import mtlweight
from benchmarks.problems import Problem
from mtlweight import GradientStrategy, GramStrategy, LossStrategy, Strategy
from mtlweight.options import options_of

Step = Callable[[], None]
Group = Literal["losses", "features", "parameters"]

# What leads to the part of a strategy's life that training spends its time in.
SETTINGS: dict[str, dict[str, Any]] = {
    "stch": {"warmup": 0},
    "igb_v1": {"base_epoch": 0},
    "igb_v2": {"base_epoch": 0, "update_after": 1, "random_epochs": 1},
}
CHUNKED = ("pcgrad", "mgda")


@dataclass(frozen=True)
class Contender:
    """One way to take a step.

    Attributes:
        library: `"limit"`, `"mtlweight"`, or that of a peer.
        name: The strategy, as its library calls it.
        route: How it is driven, where there are several ways.
        kind: What it reads: `"loss"`, `"gram"`, `"gradient"`, `"more batches"`.
        build: Returns its step on a problem, warmed up.
    """

    library: str
    name: str
    build: Callable[[Problem], Step]
    route: str = ""
    kind: str = ""

    @property
    def key(self) -> str:
        """The strategy under a name that is the same in all libraries."""
        return self.name.lower().replace("_", "").replace("-", "")

    def __str__(self) -> str:
        return ":".join(part for part in (self.library, self.name, self.route) if part)


# --- limits --------------------------------------------------------------------------------------


def plain(problem: Problem) -> Step:
    """One forward and one backward of the summed loss."""

    def step() -> None:
        problem.clear()
        torch.autograd.backward(problem.whole())

    return step


def naive(problem: Problem) -> Step:
    """The forward, and T plain passes over the parameters, whose gradients are thrown away."""
    shared = list(problem.encoder.parameters())

    def step() -> None:
        problem.clear()
        _, losses = problem.forward()
        for task, loss in losses.items():
            leaves = [*shared, *problem.heads[task].parameters()]
            torch.autograd.grad(loss, leaves, retain_graph=True)

    return step


def kept(problem: Problem) -> Step:
    """The same with the gradients kept, T rows of P numbers, and added up once into `.grad`."""
    shared = list(problem.encoder.parameters())
    rows = torch.empty(len(problem.tasks), problem.shared_size)
    sizes = [parameter.numel() for parameter in shared]
    views = [
        [piece.view_as(p) for piece, p in zip(row.split(sizes), shared, strict=True)]
        for row in rows
    ]
    total = torch.empty(problem.shared_size)
    weights = torch.ones(len(rows))

    def step() -> None:
        problem.clear()
        _, losses = problem.forward()
        for row, (task, loss) in zip(views, losses.items(), strict=True):
            own = list(problem.heads[task].parameters())
            found = torch.autograd.grad(loss, [*shared, *own], retain_graph=True)
            torch._foreach_copy_(row, found[: len(shared)])
            for parameter, gradient in zip(own, found[len(shared) :], strict=True):
                parameter.grad = gradient
        torch.mv(rows.T, weights, out=total)
        for parameter, piece in zip(shared, total.split(sizes), strict=True):
            parameter.grad = piece.view_as(parameter)

    return step


def limits(group: Group) -> list[Contender]:
    found = [Contender("limit", "plain", plain)]
    if group == "parameters":
        found.append(Contender("limit", "naive", naive))
    return found


def floors(group: Group) -> list[Contender]:
    """What no strategy that keeps the gradients can be below."""
    return [Contender("limit", "kept", kept)] if group == "parameters" else []


# --- ours ----------------------------------------------------------------------------------------


def ours(group: Group) -> Iterator[Contender]:
    """Yields every registered strategy that belongs to a group."""
    for name, cls in mtlweight.available().items():
        kind = kind_of(cls)
        if group == "features" and kind in ("gram", "gradient"):
            yield Contender("mtlweight", name, _ours(name, on_features=True), kind=kind)
        elif (group == "losses") == (kind == "loss") and group != "features":
            yield Contender("mtlweight", name, _ours(name), kind=kind)
    if group == "parameters":
        for name in CHUNKED:
            if "chunk" not in options_of(mtlweight.available()[name]).model_fields:
                continue
            yield Contender(
                "mtlweight", name, _ours(name, pieces=4), route="chunk=P/4", kind="gram"
            )


def kind_of(cls: type[Strategy]) -> str:
    """Returns what a strategy reads."""
    if issubclass(cls, LossStrategy):
        return "loss"
    if issubclass(cls, GramStrategy):
        return "gram"
    return "gradient" if issubclass(cls, GradientStrategy) else "more batches"


def _ours(
    name: str, *, on_features: bool = False, pieces: int | None = None
) -> Callable[[Problem], Step]:
    def build(problem: Problem) -> Step:
        options = required_options(name, problem) | SETTINGS.get(name, {})
        if pieces is not None:
            options["chunk"] = problem.shared_size // pieces
        strategy = mtlweight.build(name, problem.tasks, **options)
        samples_twice = kind_of(type(strategy)) == "more batches" and "validation" not in options

        def step() -> None:
            problem.clear()
            features, losses = problem.forward()
            how: dict[str, Any] = {"shared": features} if on_features else {}
            if samples_twice:
                how["independent"] = [problem.forward(batch)[1] for batch in (1, 2)]
            strategy(losses, **how).backward()

        for _ in range(2 if isinstance(strategy, LossStrategy) else 1):  # ratios of epochs
            step()
            strategy.end_epoch(dict.fromkeys(problem.tasks, 0.5))
        step()
        return step

    return build


def required_options(name: str, problem: Problem) -> dict[str, Any]:
    """Returns the options that a strategy can't do without.

    Raises:
        LookupError: There is one that nothing here is known of.
    """
    values: dict[str, Any] = {
        "references": dict.fromkeys(problem.tasks, 0.9),
        "weights": dict.fromkeys(problem.tasks, 1 / len(problem.tasks)),
        "learning_rate": 0.1,
        "validation": lambda: problem.forward(1)[1],
        "training": lambda: problem.forward(2)[1],
    }
    if name == "slgrad":  # one main task
        values["validation"] = lambda: _first(problem.forward(1)[1])
    fields = options_of(mtlweight.available()[name]).model_fields
    needed = [option for option, field in fields.items() if field.is_required()]
    if unknown := [option for option in needed if option not in values]:
        raise LookupError(f"benchmarks/contenders.py knows no value for the option {unknown[0]!r}")
    return {option: values[option] for option in needed}


def _first(losses: dict[str, Tensor]) -> Tensor:
    return next(iter(losses.values()))
