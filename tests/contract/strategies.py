"""Every strategy under the contract, what is true of it, and the problems that it meets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mtlweight
from mtlweight import LogLosses, Strategy

TASKS = ("a", "b", "c")


def constant_of(task: str) -> float:
    """Returns a number in [0.5, 0.95] that depends on the task's name, not on its place."""
    return 0.5 + 0.05 * (sum(map(ord, task)) * 7 % 10)


def metrics_of(tasks: Iterable[str], shift: float = 0.0) -> dict[str, float]:
    return {task: 0.4 + shift + 0.02 * (sum(map(ord, task)) * 3 % 10) for task in tasks}


CLASSES: dict[str, Any] = dict(mtlweight.available())


def _registered(name: str, **fixed: Any) -> Callable[..., Strategy]:
    def build(tasks: Sequence[str] | int, **options: Any) -> Strategy:
        strategy: Strategy = CLASSES[name](tasks, **fixed, **options)
        return strategy

    return build


def _with(name: str, option: str, **fixed: Any) -> Callable[..., Strategy]:
    def build(tasks: Sequence[str] | int, **options: Any) -> Strategy:
        names = [str(i) for i in range(tasks)] if isinstance(tasks, int) else tasks
        given = {option: {task: constant_of(task) for task in names}}
        strategy: Strategy = CLASSES[name](tasks, **given, **fixed, **options)
        return strategy

    return build


def _logs(inner: Callable[..., Strategy]) -> Callable[..., Strategy]:
    def build(tasks: Sequence[str] | int, **options: Any) -> Strategy:
        return LogLosses(inner(tasks, **options))

    return build


@dataclass(frozen=True)
class Case:
    """A strategy under test.

    Attributes:
        build: Returns it for the given tasks, with options.
        expressible: Whether the shared gradient is always the reported weights times the task
            gradients.
        nonnegative: Whether it refuses negative losses.
        metrics: Whether it reads metrics.
        gradients: Whether it reads gradients, and so takes `heads`.
        deterministic: Whether it draws nothing.
        heads: What multiplies the gradient of a head by default: its "weight", "one", or the slope
            of the "log" of its loss.
        one: Whether the weights of the tasks present sum to one.
    """

    name: str
    build: Callable[..., Strategy]
    expressible: bool = True
    nonnegative: bool = False
    metrics: bool = False
    gradients: bool = False
    deterministic: bool = True
    heads: str = "weight"
    one: bool = False
    logs: bool = False

    def __str__(self) -> str:
        return self.name


REGISTERED = {
    "achievement": Case(
        "achievement", _with("achievement", "references"), nonnegative=True, metrics=True
    ),
    "avg_norm": Case("avg_norm", _registered("avg_norm"), gradients=True),
    "db_mtl": Case(
        "db_mtl",
        _registered("db_mtl"),
        expressible=False,
        nonnegative=True,
        gradients=True,
        heads="log",
    ),
    "dtp": Case("dtp", _registered("dtp"), metrics=True),
    "dwa": Case("dwa", _registered("dwa"), one=True),
    "equal": Case("equal", _registered("equal"), one=True),
    "fixed": Case("fixed", _with("fixed", "weights")),
    "focal_achievement": Case(
        "focal_achievement", _with("focal_achievement", "references"), metrics=True, one=True
    ),
    "gls": Case("gls", _registered("gls"), nonnegative=True),
    "imtl_l": Case("imtl_l", _registered("imtl_l")),
    "mgda": Case("mgda", _registered("mgda"), gradients=True, heads="one", one=True),
    "pcgrad": Case(
        "pcgrad", _registered("pcgrad"), gradients=True, heads="one", deterministic=False
    ),
    "rlw": Case("rlw", _registered("rlw"), deterministic=False, one=True),
    "uw": Case("uw", _registered("uw")),
}

VARIANTS = [
    Case(
        "achievement_arithmetic",
        _with("achievement", "references", total="arithmetic", normalization="sum"),
        metrics=True,
        one=True,
    ),
    Case(
        "db_mtl_no_past",
        _registered("db_mtl", beta=0.0),
        nonnegative=True,
        gradients=True,
        heads="log",
    ),
    Case("log_equal", _logs(_registered("equal")), nonnegative=True, logs=True),
    Case("log_uw", _logs(_registered("uw")), nonnegative=True, logs=True),
    Case(
        "log_focal_achievement",
        _logs(_with("focal_achievement", "references")),
        nonnegative=True,
        metrics=True,
        logs=True,
    ),
    Case(
        "log_mgda",
        _logs(_registered("mgda")),
        nonnegative=True,
        gradients=True,
        heads="log",
        logs=True,
    ),
    Case(
        "log_pcgrad",
        _logs(_registered("pcgrad")),
        nonnegative=True,
        gradients=True,
        heads="log",
        deterministic=False,
        logs=True,
    ),
]

CASES = [*REGISTERED.values(), *VARIANTS]
BY_NAME = {case.name: case for case in CASES}
OF_LOSSES = [case for case in CASES if not case.gradients]
OF_GRADIENTS = [case for case in CASES if case.gradients]


class Network(nn.Module):
    """A trunk that all tasks share, and a head for each."""

    def __init__(self, tasks: Sequence[str] = TASKS, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh())
            self.heads = nn.ModuleDict({task: nn.Linear(5, 2) for task in sorted(tasks)})

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        features = self.trunk(x)
        return features, {task: head(features) for task, head in self.heads.items()}


def batch(
    seed: int = 0, size: int = 8, tasks: Sequence[str] = TASKS, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1000 + seed)
    x = torch.randn(size, 4, generator=generator).to(dtype)
    return x, {
        task: (1 + i) * torch.randn(size, 2, generator=generator).to(dtype)
        for i, task in enumerate(sorted(tasks))
    }


def losses_of(
    network: nn.Module, data: tuple[Tensor, dict[str, Tensor]]
) -> tuple[Tensor, dict[str, Tensor]]:
    x, targets = data
    features, outputs = network(x)
    return features, {task: F.mse_loss(outputs[task], target) for task, target in targets.items()}


def plane(
    jacobian: Tensor, values: Tensor | Sequence[float] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Returns a leaf, and losses worth `values` (ones) whose gradients are the rows `[T, P]`."""
    theta = torch.zeros(jacobian.shape[1], dtype=jacobian.dtype, requires_grad=True)
    worth = torch.ones(len(jacobian)) if values is None else torch.as_tensor(values)
    return theta, [row @ theta + value for row, value in zip(jacobian, worth, strict=True)]


def solve(
    strategy: Strategy,
    jacobian: Tensor,
    values: Tensor | Sequence[float] | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Returns the shared gradient `[P]` and the weights `[T]` of one step, in double precision."""
    theta, losses = plane(jacobian, values)
    strategy(losses, **options).backward()
    assert theta.grad is not None
    return theta.grad, strategy.weights.to(jacobian.dtype)


def gradient_rows(losses: Mapping[str, Tensor], leaves: Iterable[Tensor]) -> Tensor:
    """Returns the gradient of each loss, flattened, `[n, P]`, by plain autograd."""
    leaves = list(leaves)
    rows = []
    for loss in losses.values():
        found = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(leaf) if g is None else g).reshape(-1).double()
                    for leaf, g in zip(leaves, found, strict=True)
                ]
            )
        )
    return torch.stack(rows)


def gradient_now(leaves: Iterable[Tensor]) -> Tensor:
    """Returns what `.grad` holds, flattened, zeros where nothing."""
    return torch.cat(
        [
            (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad).reshape(-1).double()
            for leaf in leaves
        ]
    )


def snapshot(strategy: Strategy) -> dict[str, Any]:
    return {
        name: value.clone() if isinstance(value, Tensor) else value
        for name, value in strategy.state_dict().items()
    }


def same_bits(one: Any, other: Any) -> bool:
    """Tells whether two states are the same to the bit; NaN equals NaN."""
    if isinstance(one, Tensor):
        return (
            isinstance(other, Tensor)
            and one.dtype == other.dtype
            and one.shape == other.shape
            and bool(((one == other) | (one.isnan() & other.isnan())).all())
        )
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same_bits(v, other[k]) for k, v in one.items())
    return bool(one == other)
