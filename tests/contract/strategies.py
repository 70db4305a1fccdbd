"""Every strategy under the contract, what is true of it, and the problems that it meets."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mtlweight
from mtlweight import (
    Bounded,
    Every,
    GradientStrategy,
    LogLosses,
    Preference,
    Smoothed,
    Strategy,
    Tempered,
    WarmUp,
)

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


_LATEST: dict[str, Callable[[], Any]] = {}


def replay(losses: Callable[[], Any]) -> None:
    """Sets the losses that strategies take as held-out ones: by default the latest made here."""
    _LATEST["losses"] = losses


def held_out() -> Any:
    return _LATEST["losses"]()


def held_out_total() -> Tensor:
    found = held_out()
    return torch.stack(list(found.values() if isinstance(found, Mapping) else found)).sum()


def _with_main(name: str) -> Callable[..., Strategy]:
    def build(tasks: Sequence[str] | int, **options: Any) -> Strategy:
        main = "0" if isinstance(tasks, int) else min(tasks)
        strategy: Strategy = CLASSES[name](tasks, main=main, **options)
        return strategy

    return build


def _logs(inner: Callable[..., Strategy]) -> Callable[..., Strategy]:
    return _around(LogLosses, inner)


def _around(
    wrap: Callable[[Strategy], Strategy], inner: Callable[..., Strategy]
) -> Callable[..., Strategy]:
    def build(tasks: Sequence[str] | int, **options: Any) -> Strategy:
        return wrap(inner(tasks, **options))

    return build


def _prefer(inner: Strategy) -> Strategy:
    return Preference({task: constant_of(task) for task in inner.tasks}, inner)


@dataclass(frozen=True)
class Case:
    """A strategy under test, and what is true of it.

    Attributes:
        build: Returns it for the given tasks, with options.
        expressible: Whether the shared gradient is always the reported weights times the task
            gradients.
        masked: Whether it drops single entries of gradients, so that not even its first step is
            such a sum.
        nonnegative: Whether it refuses negative losses.
        metrics: Whether it reads metrics.
        gradients: Whether it reads gradients, and so takes `heads`.
        deterministic: Whether it draws nothing.
        heads: What multiplies the gradient of a head by default: its "weight", "one", the slope of
            the "log" of its loss, or a learned "scale".
        one: Whether the weights of the tasks present sum to one.
        signed: Whether a weight may be negative.
        sparse: Whether a task that is present may get no weight.
        constants: Whether weights that are computed from the losses of the step are held constant
            in the derivative, so that the scalar itself rises by another slope.
        degree: p, if all losses times c have the shared gradient times c^p; None where the unit of
            the losses matters.
        by_item: Whether it reads features item by item, dimension 0, as nothing else is read.
        in_turn: Whether it reads the gradient of one task in each step, moves nothing before each
            had its turn, and takes steps as long as Adam's.
        looks_ahead: Whether it takes held-out losses at the end of a trial step: that needs all
            gradients on every rank, and goes by the scale of the losses.
        logs: Whether it is fed logarithms of the losses.
        wrapped: Whether a wrapper changes its weights: then `"equal-norm"` is that of the inner
            gradient, and its scalar is worth the weighted sum of the losses.
    """

    name: str
    build: Callable[..., Strategy]
    expressible: bool = True
    masked: bool = False
    nonnegative: bool = False
    metrics: bool = False
    gradients: bool = False
    deterministic: bool = True
    heads: str = "weight"
    one: bool = False
    signed: bool = False
    sparse: bool = False
    constants: bool = False
    degree: float | None = 1.0
    by_item: bool = False
    in_turn: bool = False
    logs: bool = False
    looks_ahead: bool = False
    wrapped: bool = False

    @property
    def weights_degree(self) -> float | None:
        """The power of c that the weights are multiplied with if all losses are with c."""
        if self.degree is None or self.in_turn:  # these are of a direction, whatever its length
            return None if self.degree is None else 0.0
        return self.degree - 1

    @property
    def of_this_step(self) -> bool:
        """Whether the shared gradient is made of the task gradients of this step alone."""
        return self.expressible or self.masked

    @property
    def ordered(self) -> bool:
        """Whether an entry of a gradient must keep its place, since something is kept of it."""
        parts = self.build(TASKS).modules()
        return any(part.ordered for part in parts if isinstance(part, GradientStrategy))

    @cached_property
    def remembers(self) -> bool:
        """Whether it keeps gradients from step to step."""
        strategy = self.build(TASKS)
        for step in range(2):
            solve(strategy, torch.eye(3, dtype=torch.float64) * (1 + step))
        return any(
            getattr(part, name).numel() > 0
            for part in strategy.modules()
            if isinstance(part, Strategy)
            for name in part.growing
        )

    @property
    def walks(self) -> int:
        """How often a step of three tasks walks the network backwards."""
        if self.in_turn:
            return 1
        return 3 if self.gradients else 2 if self.looks_ahead else 1

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
        degree=0,
    ),
    "dtp": Case("dtp", _registered("dtp"), metrics=True),
    "dwa": Case("dwa", _registered("dwa"), one=True),
    "equal": Case("equal", _registered("equal"), one=True),
    "fixed": Case("fixed", _with("fixed", "weights")),
    "focal_achievement": Case(
        "focal_achievement", _with("focal_achievement", "references"), metrics=True, one=True
    ),
    "gls": Case("gls", _registered("gls"), nonnegative=True),
    "imtl_l": Case("imtl_l", _registered("imtl_l"), degree=None),
    "mgda": Case("mgda", _registered("mgda"), gradients=True, heads="one", one=True, sparse=True),
    "pcgrad": Case(
        "pcgrad", _registered("pcgrad"), gradients=True, heads="one", deterministic=False
    ),
    "rlw": Case("rlw", _registered("rlw"), deterministic=False, one=True),
    "uw": Case("uw", _registered("uw"), degree=None),
    "famo": Case("famo", _registered("famo"), nonnegative=True, one=True, constants=True),
    "group_dro": Case("group_dro", _registered("group_dro"), one=True, constants=True),
    "tchebycheff": Case("tchebycheff", _registered("tchebycheff"), one=True, sparse=True),
    "stch": Case("stch", _registered("stch"), nonnegative=True, degree=0),
    "bmtl": Case("bmtl", _registered("bmtl"), degree=None),
    "pbi": Case("pbi", _registered("pbi"), signed=True),
    "cosmos": Case("cosmos", _registered("cosmos"), signed=True, degree=None),
    "go4align": Case(
        "go4align", _registered("go4align"), nonnegative=True, constants=True, degree=None
    ),
    "ldc_mtl": Case("ldc_mtl", _registered("ldc_mtl")),
    "scale_invariant": Case(
        "scale_invariant", _registered("scale_invariant"), nonnegative=True, degree=0
    ),
    "softadapt": Case(
        "softadapt",
        _registered("softadapt", lookback=1, beta=5.0),
        one=True,
        constants=True,
        degree=None,
    ),
    "relobralo": Case(
        "relobralo",
        _registered("relobralo", alpha=0.5, rho=0.5, temperature=1.0),
        deterministic=False,
        one=True,
        constants=True,
    ),
    "uw_o": Case("uw_o", _registered("uw_o"), nonnegative=True, constants=True, degree=0),
    "uw_so": Case(
        "uw_so", _registered("uw_so"), nonnegative=True, one=True, constants=True, degree=None
    ),
    "revised_uw": Case("revised_uw", _registered("revised_uw"), degree=None),
    "lbtw": Case("lbtw", _registered("lbtw"), constants=True),
    "cov": Case("cov", _registered("cov"), one=True),
    "slaw": Case("slaw", _registered("slaw"), one=True, constants=True),
    "igb_v1": Case(
        "igb_v1", _registered("igb_v1", base_epoch=0), nonnegative=True, constants=True, degree=0
    ),
    "fmtl": Case("fmtl", _registered("fmtl"), metrics=True, one=True),
    "doremi": Case("doremi", _with("doremi", "references"), one=True, constants=True, degree=None),
    "online_mixing": Case("online_mixing", _registered("online_mixing"), one=True, degree=None),
    "pike": Case("pike", _registered("pike"), gradients=True, one=True),
    "variance_aware": Case(
        "variance_aware", _registered("variance_aware"), gradients=True, one=True
    ),
    "imtl_g": Case(
        "imtl_g", _registered("imtl_g"), gradients=True, heads="one", one=True, signed=True
    ),
    "imtl": Case(
        "imtl", _registered("imtl"), gradients=True, heads="scale", signed=True, degree=None
    ),
    "aligned_mtl": Case(
        "aligned_mtl", _registered("aligned_mtl"), gradients=True, heads="one", signed=True
    ),
    "config": Case("config", _registered("config"), gradients=True, heads="one", signed=True),
    "gradvac": Case(
        "gradvac", _registered("gradvac"), gradients=True, heads="one", deterministic=False
    ),
    "gradnorm": Case(
        "gradnorm", _registered("gradnorm"), nonnegative=True, gradients=True, one=True
    ),
    "krum": Case("krum", _registered("krum"), gradients=True, heads="one", one=True, sparse=True),
    "vqgan": Case("vqgan", _with_main("vqgan"), gradients=True),
    "encodec": Case("encodec", _registered("encodec"), gradients=True, by_item=True, degree=0),
    "lra": Case("lra", _with_main("lra"), gradients=True),
    "excess_mtl": Case("excess_mtl", _registered("excess_mtl"), gradients=True, one=True),
    "moco": Case(
        "moco",
        _registered("moco"),
        expressible=False,
        gradients=True,
        heads="one",
        sparse=True,
        degree=None,
    ),
    "m_config": Case(
        "m_config",
        _registered("m_config"),
        expressible=False,
        gradients=True,
        heads="one",
        signed=True,
        sparse=True,
        in_turn=True,
        degree=0,
    ),
    "graddrop": Case(
        "graddrop",
        _registered("graddrop"),
        expressible=False,
        gradients=True,
        heads="one",
        deterministic=False,
        sparse=True,
        by_item=True,
        masked=True,
    ),
    "trimmed_mean": Case(
        "trimmed_mean",
        _registered("trimmed_mean"),
        expressible=False,
        gradients=True,
        heads="one",
        sparse=True,
        masked=True,
    ),
    "modo": Case(
        "modo", _registered("modo"), gradients=True, heads="one", one=True, sparse=True, degree=None
    ),
    "sdmgrad": Case("sdmgrad", _registered("sdmgrad"), gradients=True, heads="one", one=True),
    "auto_lambda": Case(
        "auto_lambda",
        _registered("auto_lambda", validation=held_out, learning_rate=0.1, meta_learning_rate=0.03),
        gradients=True,
        looks_ahead=True,
        signed=True,
        degree=None,
    ),
    "moml": Case(
        "moml",
        _registered("moml", validation=held_out),
        gradients=True,
        one=True,
        looks_ahead=True,
        degree=None,
    ),
    "forum": Case(
        "forum",
        _registered("forum", validation=held_out, training=held_out),
        expressible=False,
        gradients=True,
        looks_ahead=True,
        sparse=True,
        degree=None,
    ),
    "igb_v2": Case(
        "igb_v2",
        _registered(
            "igb_v2",
            base_epoch=0,
            update_after=1,
            random_epochs=3,
            update_every=5,
            memory=64,
            hidden=16,
        ),
        nonnegative=True,
        deterministic=False,
        degree=0,
    ),
    "slgrad": Case(
        "slgrad",
        _registered("slgrad", validation=held_out_total, learning_rate=0.1),
        one=True,
        looks_ahead=True,
        sparse=True,
        degree=None,
    ),
    "nash_mtl": Case("nash_mtl", _registered("nash_mtl"), gradients=True, degree=0),
    "fairgrad": Case("fairgrad", _registered("fairgrad"), gradients=True, heads="one", degree=None),
    "cagrad": Case("cagrad", _registered("cagrad"), gradients=True, heads="one"),
    "upgrad": Case("upgrad", _registered("upgrad"), gradients=True, heads="one"),
    "dual_proj": Case("dual_proj", _registered("dual_proj"), gradients=True, heads="one"),
}

VARIANTS = [
    Case(
        "fairgrad_any_length",
        _registered("fairgrad", max_norm=None),
        gradients=True,
        heads="one",
        degree=-1 / 3,
    ),
    Case("stch_no_warmup", _registered("stch", warmup=0), nonnegative=True, degree=0),
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
        degree=0,
    ),
    Case("log_equal", _logs(_registered("equal")), nonnegative=True, logs=True, degree=0),
    Case("log_uw", _logs(_registered("uw")), nonnegative=True, logs=True, degree=None),
    Case(
        "log_focal_achievement",
        _logs(_with("focal_achievement", "references")),
        nonnegative=True,
        metrics=True,
        logs=True,
        degree=0,
    ),
    Case(
        "log_mgda",
        _logs(_registered("mgda")),
        nonnegative=True,
        gradients=True,
        heads="log",
        logs=True,
        sparse=True,
        degree=0,
    ),
    Case(
        "log_pcgrad",
        _logs(_registered("pcgrad")),
        nonnegative=True,
        gradients=True,
        heads="log",
        deterministic=False,
        logs=True,
        degree=0,
    ),
    Case(
        "smoothed_mgda",
        _around(lambda inner: Smoothed(0.9, inner), _registered("mgda")),
        gradients=True,
        heads="one",
        wrapped=True,
        sparse=True,
    ),
    Case(
        "every_pcgrad",
        _around(lambda inner: Every(3, inner), _registered("pcgrad")),
        gradients=True,
        heads="one",
        deterministic=False,
        wrapped=True,
    ),
    Case(
        "bounded_gls",
        _around(lambda inner: Bounded(inner, floor=0.25), _registered("gls")),
        nonnegative=True,
        wrapped=True,
    ),
    Case(
        "warm_up_dwa",
        _around(lambda inner: WarmUp(1, inner), _registered("dwa")),
        one=True,
        wrapped=True,
    ),
    Case(
        "tempered_focal_achievement",
        _around(lambda inner: Tempered(0.5, inner), _with("focal_achievement", "references")),
        metrics=True,
        one=True,
        wrapped=True,
    ),
    Case(
        "db_mtl_no_past_preferred",
        _around(_prefer, _registered("db_mtl", beta=0.0)),
        nonnegative=True,
        gradients=True,
        heads="log",
        wrapped=True,
        degree=0,
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
    alive = weakref.ref(network)

    def again() -> dict[str, Tensor]:
        network = alive()
        assert network is not None, "the latest network is gone: use `replay`"
        return _forward(network, data)[1]

    replay(again)
    return _forward(network, data)


def _forward(
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
    alive = weakref.ref(theta)

    def losses() -> list[Tensor]:
        theta = alive()
        assert theta is not None, "the latest plane is gone: use `replay`"
        return [row @ theta + value for row, value in zip(jacobian, worth, strict=True)]

    replay(losses)
    return theta, losses()


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
