"""What the pages say of each strategy: measured on a small network, not written by hand."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from torch import Tensor, nn

from mtlweight import GradientStrategy, GramStrategy, MetricStrategy, Strategy
from mtlweight.options import options_of
from mtlweight.strategies import STRATEGIES

FAMILIES = {
    "Constants and lots": ["equal", "fixed", "rlw"],
    "Losses: their scale": [
        *["scale_invariant", "gls", "uw", "uw_o", "uw_so", "revised_uw", "imtl_l"],
    ],
    "Losses: their course": [
        *["dwa", "softadapt", "relobralo", "lbtw", "cov", "slaw", "igb_v1", "famo", "go4align"],
        "ldc_mtl",
    ],
    "Losses: worst cases and preferences": [
        *["group_dro", "tchebycheff", "stch", "bmtl", "pbi", "cosmos"],
    ],
    "Validation metrics": ["dtp", "fmtl", "achievement", "focal_achievement"],
    "Gradients: their lengths": [
        *["avg_norm", "gradnorm", "db_mtl", "excess_mtl", "encodec", "vqgan", "lra"],
    ],
    "Gradients: their directions": [
        *["mgda", "pcgrad", "gradvac", "cagrad", "imtl_g", "imtl", "aligned_mtl", "config"],
        *["m_config", "nash_mtl", "fairgrad", "dual_proj", "upgrad", "moco", "modo", "sdmgrad"],
        *["graddrop", "trimmed_mean", "krum"],
    ],
    "Data mixing": ["doremi", "online_mixing", "pike", "variance_aware"],
    "Looking ahead, and experimental": ["auto_lambda", "moml", "forum", "slgrad", "igb_v2"],
}
COMMON = ("rescale", "check", "heads", "chunk")
# So that T and P are told apart from other sizes in the shape of a buffer.
TASKS, WIDTH = 7, 11
SHARED = 4 * WIDTH + WIDTH * WIDTH
# What leads to the part of a strategy's life that training spends its time in.
SETTINGS: dict[str, dict[str, Any]] = {
    "stch": {"warmup": 0},
    "igb_v1": {"base_epoch": 0},
    "forum": {"learning_rate": 1e-4},
}
HEADS = {"db_mtl": r"the gradient of $\log L_i$", "imtl": "the gradient of the scaled loss"}


class Tap(torch.autograd.Function):
    """Counts how often the middle of a network is walked."""

    forwards = 0
    backwards = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Counts a forward pass."""
        Tap.forwards += 1
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Counts a backward pass."""
        Tap.backwards += 1
        return gradient + 0 * gradient  # so that it can be differentiated once more


class Network(nn.Module):
    """A trunk, and a head for each task."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.first = nn.Linear(4, WIDTH, bias=False)
        self.second = nn.Linear(WIDTH, WIDTH, bias=False)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(tasks))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns the features, and a positive loss for each task, some of which conflict."""
        features = self.second(Tap.apply(self.first(x)).tanh())
        goals = [2.0 if i % 3 else -2.0 for i in range(len(self.heads))]
        return features, [
            head(features).square().mean() + (features[:, 0] - goal).square().mean()
            for head, goal in zip(self.heads, goals, strict=True)
        ]


@dataclass(frozen=True)
class Facts:
    """What was measured of a strategy.

    Attributes:
        backwards: Backward passes of a step through what is shared: a, b for a T + b.
        forwards: Forward passes of a step, alike.
        on_features: Backward passes below features that are given as shared, alike; None where
            features are refused or change nothing.
        sums_to_one: Whether the weights did in every step.
        buffers: The shapes of its state by name, beside what every strategy keeps.
        in_graph: Whether a compiled training step takes it in without a break.
        nonnegative: Whether it refuses negative losses.
    """

    backwards: tuple[int, int]
    forwards: tuple[int, int]
    on_features: tuple[int, int] | None
    sums_to_one: bool
    buffers: dict[str, str]
    in_graph: bool
    nonnegative: bool


def build(
    name: str, tasks: int, held_out: Callable[[], Any], present: Callable[[], Any]
) -> Strategy:
    """Returns a strategy with what it can't do without."""
    given: dict[str, Any] = {
        "references": [1.0] * tasks,
        "weights": [1 / (2 + i) for i in range(tasks)],
        "validation": held_out,
        "training": present,
        "learning_rate": 0.01,
    }
    needed = {k for k, f in options_of(STRATEGIES[name]).model_fields.items() if f.is_required()}
    options = {k: given[k] for k in needed} | SETTINGS.get(name, {})
    return STRATEGIES[name](tasks, **options)


@dataclass
class Run:
    """Some steps of a strategy, and how the network was walked in each."""

    strategy: Strategy
    backwards: float
    forwards: float
    sums: list[float]


def run(name: str, tasks: int, on_features: bool = False, further: int = 0) -> Run:
    """Takes some steps, with losses of so many further batches."""
    torch.manual_seed(0)
    network = Network(tasks)

    latest: list[Tensor] = []

    def losses(x: Tensor | None = None) -> list[Tensor]:
        found: list[Tensor] = network(torch.randn(8, 4) if x is None else x)[1]
        return found

    def held_out() -> Any:
        return torch.stack(losses()).sum() if name == "slgrad" else losses()

    strategy = build(name, tasks, held_out, lambda: losses(*latest))
    backwards, forwards, sums = [], [], []
    for step in range(9):
        Tap.forwards = Tap.backwards = 0
        latest[:] = [torch.randn(8, 4)]
        features, given = network(*latest)
        more = [losses() for _ in range(further)]
        total = strategy(given, shared=features if on_features else None, independent=more)
        total.backward()
        backwards.append(Tap.backwards)
        forwards.append(Tap.forwards)
        sums.append(float(strategy.weights.sum()))
        if step % 3 == 2:
            strategy.end_epoch([0.3 + 0.05 * i + 0.01 * step for i in range(tasks)])
    return Run(strategy, median(backwards), median(forwards), sums)


def conflicts(name: str) -> list[float]:
    """Returns the sums of a strategy's weights on gradients of all angles and lengths."""
    if not issubclass(STRATEGIES[name], GramStrategy):
        return []
    draw = torch.Generator().manual_seed(0)
    sums = []
    for _ in range(40):
        rows = torch.randn(3, 6, generator=draw) * 10 ** torch.randn(3, 1, generator=draw)
        point = torch.zeros(6, requires_grad=True)
        strategy = build(name, 3, list, list)
        strategy([row @ point + 1 for row in rows], shared=[point])
        sums.append(float(strategy.weights.sum()))
    return sums


def line(at: Callable[[int], float]) -> tuple[int, int]:
    """Returns a and b of a T + b."""
    few, many = at(3), at(5)
    slope = (many - few) / 2
    return round(slope), round(few - 3 * slope)


def measure(name: str, needs: str = "") -> Facts:
    """Returns the facts of a strategy."""
    further = 2 if needs == "two more batches" else 0
    runs = {tasks: run(name, tasks, further=further) for tasks in (3, 5, TASKS)}
    on_features = None
    if not further and reads_gradients(STRATEGIES[name]):
        lit = {tasks: run(name, tasks, on_features=True) for tasks in (3, 5)}
        on_features = line(lambda tasks: lit[tasks].backwards)
    strategy = runs[TASKS].strategy
    sums = [s for tasks in runs for s in runs[tasks].sums] + conflicts(name)
    backwards = line(lambda tasks: runs[tasks].backwards)
    return Facts(
        backwards,
        line(lambda tasks: runs[tasks].forwards),
        on_features if on_features != backwards else None,
        all(abs(s - 1) < 1e-4 for s in sums),
        buffers_of(strategy),
        bool(strategy.in_graph),
        bool(strategy.nonnegative_losses),
    )


def reads_gradients(strategy: type[Strategy]) -> bool:
    """Tells whether a strategy takes a gradient of each task."""
    return "heads" in options_of(strategy).model_fields


def buffers_of(strategy: Strategy) -> dict[str, str]:
    """Returns the shapes of what a strategy keeps, in T and P."""
    sizes = {TASKS: "T", SHARED: "P", 3 * TASKS + 1: "3T + 1"}
    common = ("weights", "epoch_weights.")
    found = {}
    for name, value in strategy.state_dict().items():
        if name.startswith(common) or name.endswith("_extra_state"):
            continue
        shape = ", ".join(sizes.get(size, str(size)) for size in value.shape)
        found[name] = f"[{shape}]"
    return found


def reads(name: str, needs: str) -> str:
    """Returns what a strategy reads, in words."""
    strategy = STRATEGIES[name]
    if name in ("auto_lambda", "moml", "forum"):
        return "task gradients, and those of held-out losses"
    if name == "slgrad":
        return "losses of samples, and the gradient of a held-out loss"
    if issubclass(strategy, MetricStrategy):
        return "validation metrics" + (" and references" if "references" in needs else "")
    if issubclass(strategy, GramStrategy):
        lengths = name in FAMILIES["Gradients: their lengths"]
        return "lengths of task gradients" if lengths else "inner products of task gradients"
    if issubclass(strategy, GradientStrategy) or reads_gradients(strategy):
        return "task gradients" + (" of three batches" if "batches" in needs else "")
    if name in FAMILIES["Constants and lots"]:
        return "nothing"
    return "losses" + (" and references" if "references" in needs else "")


def passes(count: tuple[int, int], kind: str) -> str:
    """Returns a number of passes in words."""
    slope, rest = count
    if slope == 0:
        return f"{'one' if rest == 1 else rest} {kind} pass{'' if rest == 1 else 'es'}"
    times = "T" if slope == 1 else f"{slope}T"
    sign = f" {'+' if rest > 0 else '-'} {abs(rest)}" if rest else ""
    return f"{times}{sign} {kind} passes"


def cost(name: str, facts: Facts) -> str:
    """Returns the cost of a step in words."""
    words = passes(facts.backwards, "backward")
    if facts.backwards == (0, 1):
        words += ", as without it"
    if facts.on_features is not None:
        words += f"; below features given as `shared`, {passes(facts.on_features, 'backward')}"
    if name == "slgrad":
        words += " outside of `directed`, one of which is differentiated again"
    if name == "igb_v2":
        words += "; now and then, the steps of the agent's networks"
    if facts.forwards != (0, 1):
        words += f"; {passes(facts.forwards, 'forward')}"
    return words


def memory(name: str, facts: Facts) -> str:
    """Returns in words what a step holds beside plain training, and what is kept."""
    strategy = STRATEGIES[name]
    kept = [shape for shape in facts.buffers.values() if "P" in shape]
    rows = ["T" for shape in kept if shape == "[T, P]"]
    single = len(kept) - len(rows)
    if single:
        rows.append(str(single))
    text = "some numbers per task"
    if name in ("auto_lambda", "moml", "forum"):
        text = "T gradients, a copy of the parameters, and the graph of the held-out losses"
    elif name == "slgrad":
        text = "a copy of the parameters, and a second graph"
    elif name == "igb_v2":
        text = "the networks of the agent, and its transitions"
    elif issubclass(strategy, GramStrategy):
        text = (
            "T gradients during the step, but for layers whose inner products come cheaper; "
            "`chunk=` bounds it"
        )
    elif reads_gradients(strategy):
        text = f"{'2T' if facts.backwards[0] == 2 else 'T'} gradients during the step"
    if rows:
        text += f"; {' + '.join(rows)} more from step to step, also in `state_dict()`"
    return text


def heads(name: str) -> str:
    """Returns in words what trains the heads by default."""
    strategy = STRATEGIES[name]
    if not reads_gradients(strategy):
        return "weighted like the rest"
    if name in HEADS:
        return HEADS[name]
    return "weighted" if getattr(strategy, "paper_weights_heads", False) else "plain gradients"


def allowed(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Returns in words what an option may be."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return allowed(inner[0], [m for a in inner[1:] for m in getattr(a, "metadata", [a])])
    if origin is Literal:
        return ", ".join(f'`"{value}"`' for value in inner)
    if origin in (Union, types.UnionType):
        if Mapping in {get_origin(part) or part for part in inner} and bool in inner:
            return "a truth value, or one per task"
        if Tensor in inner:
            plain = "a number, or " if float in inner else ""
            return f"{plain}one per task" + (", or `None`" if type(None) in inner else "")
        if Mapping in {get_origin(part) or part for part in inner}:
            return "one per task"
        return ", or ".join("`None`" if p is type(None) else allowed(p, metadata) for p in inner)
    if annotation in (int, float):
        return _range("whole" if annotation is int else "", metadata)
    if annotation is bool:
        return "`True`, `False`"
    if annotation is str:
        return "the name of a task"
    if origin is not None and issubclass(origin, Callable):  # type: ignore[arg-type]
        return "a function without arguments"
    if origin is not None and issubclass(origin, Sequence):
        return "names of tasks"
    raise TypeError(f"There are no words for {annotation}.")


def _range(kind: str, metadata: Sequence[Any]) -> str:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    ends = [
        f"{word} {getattr(m, key)}"
        for key, word in words.items()
        for m in metadata
        if getattr(m, key, None) is not None
    ]
    bounds = " and ".join(ends) or "any number"
    return f"{kind}, {bounds}" if kind else bounds


def options(name: str) -> list[tuple[str, str, str]]:
    """Returns the options that are the strategy's own: name, default, and what is allowed."""
    model: type[BaseModel] = options_of(STRATEGIES[name])
    rows = []
    for option, field in model.model_fields.items():
        if option not in COMMON:
            default = "needed" if field.is_required() else _code(field)
            rows.append((option, default, allowed(field.annotation, field.metadata)))
    return rows


def _code(field: FieldInfo) -> str:
    return f"`{field.default!r}`"
