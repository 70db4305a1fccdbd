"""The other libraries, driven as their documentation says; each is imported when it is built."""

from __future__ import annotations

import functools
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.contenders import Contender, Group, Step
from benchmarks.problems import Problem, SubBatches

# Those that every way of torchjd is tried with where a step takes long.
FEW = ("MGDA", "PCGrad", "UPGrad")


def peers(group: Group, slow: bool = False) -> Iterator[Contender]:
    """Yields the contenders of other libraries that belong to a group.

    Args:
        group: Which.
        slow: Whether a step takes long.
    """
    for contender in torchjd(group):
        if not slow or contender.route in ("", ROUTES[0]) or contender.name in FEW:
            yield contender
    yield from libmtl(group)


def _warmed_up(step: Step) -> Step:
    step()
    return step


# --- torchjd -------------------------------------------------------------------------------------

_ONES = torch.ones
AGGREGATORS: dict[str, Callable[[Any, int], Any]] = {
    "AlignedMTL": lambda m, t: m.AlignedMTL(),
    "CAGrad": lambda m, t: m.CAGrad(c=0.5),
    "ConFIG": lambda m, t: m.ConFIG(),
    "DualProj": lambda m, t: m.DualProj(),
    "ExcessMTL": lambda m, t: m.ExcessMTL(),
    "FairGrad": lambda m, t: m.FairGrad(alpha=2.0),
    "GradDrop": lambda m, t: m.GradDrop(),
    "GradVac": lambda m, t: m.GradVac(),
    "IMTLG": lambda m, t: m.IMTLG(),
    "Krum": lambda m, t: m.Krum(n_byzantine=0 if t < 4 else 1),
    "MGDA": lambda m, t: m.MGDA(),
    "NashMTL": lambda m, t: m.NashMTL(n_tasks=t),
    "PCGrad": lambda m, t: m.PCGrad(),
    "TrimmedMean": lambda m, t: m.TrimmedMean(trim_number=1),
    "UPGrad": lambda m, t: m.UPGrad(),
}
WEIGHTINGS: dict[str, Callable[[Any, int], Any]] = {
    "AlignedMTL": lambda m, t: m.AlignedMTLWeighting(),
    "CAGrad": lambda m, t: m.CAGradWeighting(c=0.5),
    "DualProj": lambda m, t: m.DualProjWeighting(),
    "FairGrad": lambda m, t: m.FairGradWeighting(alpha=2.0),
    "GradVac": lambda m, t: m.GradVacWeighting(),
    "IMTLG": lambda m, t: m.IMTLGWeighting(),
    "Krum": lambda m, t: m.KrumWeighting(n_byzantine=0 if t < 4 else 1),
    "MGDA": lambda m, t: m.MGDAWeighting(),
    "PCGrad": lambda m, t: m.PCGradWeighting(),
    "UPGrad": lambda m, t: m.UPGradWeighting(),
}
SCALARIZERS: dict[str, Callable[[Any, int], Any]] = {
    "COSMOS": lambda m, t: m.COSMOS(1.0, _ONES(t) / t),
    "DWA": lambda m, t: m.DWA(),
    "FAMO": lambda m, t: m.FAMO(t),
    "GLS": lambda m, t: m.GeometricMean(),
    "IMTL_L": lambda m, t: m.IMTLL(t),
    "Equal": lambda m, t: m.Mean(),
    "PBI": lambda m, t: m.PBI(1.0, _ONES(t) / t),
    "RLW": lambda m, t: m.Random(),
    "STCH": lambda m, t: m.STCH(1.0),
    "UW": lambda m, t: m.UW(t),
}
# One after the other, or all at once by vmap; the Gram engine holds no Jacobian.
ROUTES = ("sequential", "vectorised", "engine")


def torchjd(group: Group) -> Iterator[Contender]:
    """Yields torchjd's; it has no documented way to stop at features."""
    if group == "losses":
        for name, make in SCALARIZERS.items():
            yield Contender("torchjd", name, functools.partial(_scalarized, make), kind="loss")
    elif group == "parameters":
        for name, make in AGGREGATORS.items():
            for route in ROUTES[:2]:
                build = functools.partial(_aggregated, make, route)
                yield Contender("torchjd", name, build, route=route)
            if name in WEIGHTINGS:
                build = functools.partial(_by_engine, WEIGHTINGS[name])
                yield Contender("torchjd", name, build, route=ROUTES[2])


def _aggregated(make: Callable[[Any, int], Any], route: str, problem: Problem) -> Step:
    from torchjd import aggregation, autojac

    aggregator = make(aggregation, len(problem.tasks))
    size = 1 if route == "sequential" else None

    def step() -> None:
        problem.clear()
        features, losses = problem.forward()
        if features is None:
            autojac.backward(list(losses.values()), parallel_chunk_size=size)
        else:
            autojac.mtl_backward(list(losses.values()), features=features, parallel_chunk_size=size)
        autojac.jac_to_grad(problem.encoder.parameters(), aggregator)

    return _warmed_up(step)


def _by_engine(make: Callable[[Any, int], Any], problem: Problem) -> Step:
    from torchjd import aggregation, autogram

    twin = problem.twin
    if not hasattr(twin, "engine"):  # its hooks stay on the network
        twin.engine = autogram.Engine(twin.encoder, batch_dim=None)  # type: ignore[attr-defined]
    engine: Any = twin.engine  # type: ignore[attr-defined]
    weighting = make(aggregation, len(twin.tasks))

    def step() -> None:
        twin.clear()
        losses = torch.stack(list(twin.forward()[1].values()))
        torch.autograd.backward(losses, weighting(engine.compute_gramian(losses)))

    return _warmed_up(step)


def _scalarized(make: Callable[[Any, int], Any], problem: Problem) -> Step:
    from torchjd import scalarization

    scalarizer = make(scalarization, len(problem.tasks))

    def losses() -> Tensor:
        return torch.stack(list(problem.forward()[1].values()))

    def step() -> None:
        problem.clear()
        scalarizer(losses()).backward()
        if isinstance(scalarizer, scalarization.FAMO):
            with torch.no_grad():
                scalarizer.update(losses())

    step()
    if isinstance(scalarizer, scalarization.DWA):
        scalarizer.step()
        step()
        scalarizer.step()
    return _warmed_up(step)


# --- LibMTL --------------------------------------------------------------------------------------
# Its package can't be imported (the trainer needs packages that it doesn't declare), so its classes
# are loaded from their files.

ARGUMENTS: dict[str, dict[str, Any]] = {
    "DWA": {"T": 2.0},
    "RLW": {"dist": "Normal"},
    "GradNorm": {"alpha": 1.5},
    "MGDA": {"mgda_gn": "none"},
    "GradVac": {"beta": 0.5},
    "GradDrop": {"leak": 0.0},
    "CAGrad": {"calpha": 0.5, "rescale": 1},
    "Nash_MTL": {"update_weights_every": 1, "optim_niter": 20, "max_norm": 1.0},
    "MoCo": {
        "MoCo_beta": 0.5,
        "MoCo_beta_sigma": 0.5,
        "MoCo_gamma": 0.1,
        "MoCo_gamma_sigma": 0.5,
        "MoCo_rho": 0.0,
    },
    "DB_MTL": {"DB_beta": 0.9, "DB_beta_sigma": 0.0},
    "STCH": {"STCH_mu": 1.0, "STCH_warmup_epoch": 4},
    "ExcessMTL": {"robust_step_size": 1e-2},
    "FairGrad": {"FairGrad_alpha": 1.0},
    "FAMO": {"FAMO_w_lr": 0.025, "FAMO_w_gamma": 1e-3},
    "UPGrad": {"UPGrad_norm_eps": 1e-4, "UPGrad_reg_eps": 1e-4},
}
OF_LOSSES = ("EW", "DWA", "FAMO", "GLS", "RLW", "STCH", "UW")
OF_FEATURES = ("GradDrop", "GradNorm", "GradVac", "IMTL", "MGDA", "PCGrad", "Aligned_MTL")
OF_PARAMETERS = (
    *("CAGrad", "GradNorm", "GradVac", "IMTL", "MGDA", "PCGrad"),
    *("Aligned_MTL", "DB_MTL", "ExcessMTL", "FairGrad", "MoCo", "Nash_MTL", "UPGrad"),
)


def libmtl(group: Group) -> Iterator[Contender]:
    """Yields LibMTL's, those too that only its repository has and no release."""
    names = {"losses": OF_LOSSES, "features": OF_FEATURES, "parameters": OF_PARAMETERS}[group]
    for name in names:
        build = functools.partial(_libmtl, name, group == "features")
        shown = "Equal" if name == "EW" else name
        yield Contender("LibMTL", shown, build, kind="loss" if group == "losses" else "")


def _libmtl(name: str, on_features: bool, problem: Problem) -> Step:
    model = _model(name, on_features, problem)
    arguments = ARGUMENTS.get(name, {})

    def step() -> None:
        model.zero_grad()
        _, found = problem.forward(run=model)
        losses = torch.zeros(len(problem.tasks))
        for i, loss in enumerate(found.values()):
            losses[i] = loss
        model.backward(losses, **arguments)

    return _warmed_up(step)


def _model(name: str, on_features: bool, problem: Problem) -> Any:
    """Returns the model that LibMTL's trainer builds: an architecture that is also a weighting."""
    weighting = _load("weighting", name)
    architecture = _load("architecture", "HPS")

    class Model(architecture, weighting):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__(
                list(problem.tasks),
                lambda: problem.encoder,
                problem.heads,
                on_features,
                isinstance(problem, SubBatches),
                torch.device("cpu"),
            )
            self.init_param()
            self.epoch, self.epochs = 4, 10
            self.train_loss_buffer = np.ones((self.task_num, self.epochs))

        def zero_grad_share_params(self) -> None:
            # As written it sets them to None, and fails on them: it was meant for older torch.
            self.encoder.zero_grad(set_to_none=False)

    return Model()


def _load(folder: str, name: str) -> Any:
    installed = distribution("LibMTL")
    root = Path(str(installed.locate_file("LibMTL")))
    base = "abstract_weighting" if folder == "weighting" else "abstract_arch"
    for package in ("LibMTL", f"LibMTL.{folder}"):
        sys.modules.setdefault(package, types.ModuleType(package))
    for module in (base, name):
        full, path = f"LibMTL.{folder}.{module}", root / folder / f"{module}.py"
        if full in sys.modules:
            continue
        if not path.exists():
            raise ImportError(f"LibMTL {installed.version} has no {name}")
        spec = importlib.util.spec_from_file_location(full, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return getattr(sys.modules[f"LibMTL.{folder}.{name}"], name)
