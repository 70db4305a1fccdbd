"""Whether ours and BasicSR's LR images have one distribution: two-sample tests, noise included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.degradation.images import crops, rows_of, stratified
from benchmarks.degradation.reference import Reference
from mtlweight_sr.degradation import degrade
from mtlweight_sr.degradation.pipeline import Compat


def _gradient(x: Tensor) -> Tensor:
    return x.diff(dim=-1).square().mean((1, 2, 3)) + x.diff(dim=-2).square().mean((1, 2, 3))


def _high(x: Tensor) -> Tensor:
    return x.diff(dim=-1).diff(dim=-2).square().mean((1, 2, 3))


def _blockiness(x: Tensor) -> Tensor:
    steps = x.diff(dim=-1).abs().mean((1, 2))
    at_borders = torch.arange(1, x.shape[-1]) % 8 == 0
    return steps[:, at_borders].mean(1) / steps[:, ~at_borders].mean(1).clamp_min(1e-4)


def _correlation(x: Tensor) -> Tensor:
    """Of the channels' gradients, which noise drives and the scene does not."""
    steps = x.diff(dim=-1).flatten(2)
    steps = steps - steps.mean(-1, keepdim=True)
    steps = steps / steps.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    gram = steps @ steps.mT
    return (gram[:, 0, 1] + gram[:, 0, 2] + gram[:, 1, 2]) / 3


STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean((1, 2, 3)),
    "standard deviation": lambda x: x.std((1, 2, 3)),
    "gradient energy": lambda x: _gradient(x).log(),
    "high-frequency energy": lambda x: _high(x).log(),
    "blockiness": _blockiness,
    "channel correlation": _correlation,
}


@dataclass(frozen=True)
class TwoSample:
    """Ours against BasicSR's on the same rows and images, each with noise of its own.

    Attributes:
        statistic: Of an LR image.
        distance: Kolmogorov and Smirnov's: the largest difference of the distribution functions.
        p: Its probability under one common distribution.
        shift: The mean difference on a row, in standard deviations over rows.
        p_paired: The probability of a shift as large (signed ranks of the differences).
    """

    statistic: str
    distance: float
    p: float
    shift: float
    p_paired: float


@dataclass(frozen=True)
class Distribution:
    """All statistics, and the probability of their energy distance under exchanged labels."""

    rows: int
    statistics: list[TwoSample]
    p_energy: float


def renderings(
    reference: Reference,
    rows: int,
    size: int,
    *,
    compat: Compat | None = "realesrgan",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Returns the LR images of ours and of BasicSR's functions, on the same rows and images."""
    images = crops(size, rows, seed)
    p = rows_of(stratified(1, rows, seed)[0], seed)
    torch.manual_seed(seed)
    theirs = torch.cat([reference.degrade(images[i][None], p[i]) for i in range(rows)])
    return degrade(images, p, compat=compat), theirs


def compare(ours: Tensor, theirs: Tensor) -> Distribution:
    """Returns the two-sample tests of paired LR images `[N, 3, h, w]`."""
    from scipy.stats import ks_2samp, wilcoxon

    found, columns = [], []
    for name, of in STATISTICS.items():
        a, b = of(ours).double().numpy(), of(theirs).double().numpy()
        both = ks_2samp(a, b)
        spread = float(np.concatenate([a, b]).std())
        shift = float((a - b).mean()) / spread
        found.append(
            TwoSample(
                name,
                float(both.statistic),
                float(both.pvalue),
                shift,
                float(wilcoxon(a, b).pvalue),
            )
        )
        columns.append(np.concatenate([a, b]) / spread)
    points = torch.from_numpy(np.stack(columns, 1))
    return Distribution(len(ours), found, _energy(points, len(ours)))


def _energy(points: Tensor, rows: int, permutations: int = 999) -> float:
    """The probability of an energy distance as large when the two of any pair change places."""
    distances = torch.cdist(points, points)
    generator = torch.Generator().manual_seed(0)
    flips = torch.randint(0, 2, (permutations, rows), generator=generator).double() * 2 - 1
    flips = torch.cat([torch.ones(1, rows, dtype=torch.float64), flips])
    signs = torch.cat([flips, -flips], 1)
    energies = -(signs @ distances * signs).sum(1)
    return float((energies[1:] >= energies[0]).double().sum() + 1) / (permutations + 1)
