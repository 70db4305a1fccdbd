"""How far ours is from BasicSR's functions, operator by operator and in distribution.

python -m benchmarks.degradation.agreement --out results/agreement.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.degradation.images import crops, rows_of, stratified
from benchmarks.degradation.reference import Reference
from benchmarks.report import write
from mtlweight_sr.degradation import (
    COLUMNS,
    FAMILIES,
    MODES,
    REALESRGAN_X4,
    DegradationSpace,
    blur,
    degrade,
    jpeg,
    poisson_noise,
    resize_by,
    resize_to,
    usm_sharpen,
)
from mtlweight_sr.degradation.kernels import stage_kernels
from mtlweight_sr.degradation.pipeline import Compat

LEVEL = 1 / 255


@dataclass(frozen=True)
class Agreement:
    """The difference of one operator, ours from BasicSR's.

    Attributes:
        operator: Which.
        cases: On how many images, kernels or rows.
        largest: The largest absolute difference, of values in [0, 1] or taps of kernels.
        mean: The mean one.
        same: The share of the 8-bit levels that are equal, for what is rounded to them.
    """

    operator: str
    cases: int
    largest: float
    mean: float
    same: float | None = None

    @classmethod
    def of(
        cls, operator: str, pairs: Sequence[tuple[Tensor, Tensor]], *, rounded: bool = False
    ) -> Agreement:
        """Compares results pair by pair."""
        differences = torch.cat([(a.double() - b.double()).abs().flatten() for a, b in pairs])
        same = float((differences < LEVEL / 2).double().mean()) if rounded else None
        cases = sum(len(a) for a, _ in pairs)
        return cls(operator, cases, float(differences.max()), float(differences.mean()), same)


NOISELESS = DegradationSpace.model_validate(
    REALESRGAN_X4.model_dump()
    | {
        stage: getattr(REALESRGAN_X4, stage).model_dump() | {"noise": {"on": 0.0}}
        for stage in ("first", "second")
    }
)


def operators(reference: Reference, size: int = 128, rows: int = 96) -> Iterator[Agreement]:
    """Yields every operator's agreement, and that of the whole without noise."""
    images = crops(size, 6)
    yield from kernels(reference, rows)
    taps = reference.kernels(rows_of(stratified(1, len(images))[0]).first)
    yield Agreement.of("blur", [(blur(images, taps), reference.blur(images, taps))])
    factors = (0.15, 0.37, 0.61803, 1.0, 1.23, 1.5)
    for mode in MODES:
        pairs = [
            (resize_by(images, factor, mode), reference.resize_by(images, factor, mode))
            for factor in factors
        ]
        targets = [(31, 45), (size // 4, size // 4), (150, 150)]
        pairs += [
            (resize_to(images, to, mode), reference.resize_to(images, to, mode)) for to in targets
        ]
        yield Agreement.of(f"resize, {mode}", pairs)
    with torch.no_grad():
        for quality in (30.0, 49.9, 75.3, 95.0):
            each = torch.full((len(images),), quality)
            pairs = []
            for cut in (images, images[..., :61, :77], images[..., :16, :24]):
                cut = cut.contiguous()
                pairs.append((jpeg(cut, each, "basicsr"), reference.jpeg(cut, each)))
            yield Agreement.of(f"JPEG, quality {quality:g}", pairs)
        yield Agreement.of("sharpening", [(usm_sharpen(images[:2]), reference.sharpen(images[:2]))])
    yield without_noise(reference, images, rows)


def of_family(cube: Tensor, family: str) -> Tensor:
    """Returns the cube with a family of kernels, or the sinc, in the first stage of every row."""
    cube = cube.clone()
    cube[:, COLUMNS.index("sinc_1")] = 0.05 if family == "sinc" else 0.5
    if family != "sinc":
        edges = np.cumsum((0.0, *REALESRGAN_X4.first.blur.families))
        place = FAMILIES.index(family)
        cube[:, COLUMNS.index("family_1")] = float(edges[place] + edges[place + 1]) / 2
    return cube


def kernels(reference: Reference, rows: int) -> Iterator[Agreement]:
    """Yields the agreement of every family of kernels."""
    cube = stratified(1, rows)[0]
    for family in (*FAMILIES, "sinc"):
        stage = rows_of(of_family(cube, family)).first
        pair = stage_kernels(stage), reference.kernels(stage)
        yield Agreement.of(f"kernels, {family.replace('_', ' ')}", [pair])


def without_noise(reference: Reference, images: Tensor, rows: int) -> Agreement:
    """Returns the agreement of the whole where no noise is added."""
    p = rows_of(stratified(1, rows)[0], space=NOISELESS)
    pairs = []
    for i in range(rows):
        image = images[i % len(images)][None]
        pairs.append((degrade(image, p[i], compat="realesrgan"), reference.degrade(image, p[i])))
    return Agreement.of("whole, without noise", pairs, rounded=True)


def grains(image: Tensor, field: Tensor, *, gray: bool) -> int:
    """Returns the number n that Poisson noise P / n - v was made with, from the noise itself."""
    if gray:
        image = (image * image.new_tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)).sum(0)
        field = field[0]
    value = field.double() + (image * 255).round().clamp(0, 255).double() / 255
    for n in (2**k for k in range(9)):
        # Luma half between two levels falls on either side by rounding, of few pixels.
        if (((value * n).round() - value * n).abs() > 1e-3).double().mean() < 0.01:
            return n
    raise ValueError("expected Poisson counts over a power of two")


def level_counts(reference: Reference, images: Tensor) -> list[tuple[int, int]]:
    """Returns ours and BasicSR's n for images of ever fewer levels, in colour and gray."""
    found = []
    for image in images:
        for step in (1, 2, 5, 16, 40, 90, 256):
            coarse = ((image * 255 // step) * step / 255)[None]
            for gray in (False, True):
                arguments = coarse, torch.ones(1), torch.tensor([gray])
                ours, theirs = poisson_noise(*arguments), reference.poisson_noise(*arguments)
                found.append(
                    (grains(coarse[0], ours[0], gray=gray), grains(coarse[0], theirs[0], gray=gray))
                )
    return found


# --- distribution --------------------------------------------------------------------------------


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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.degradation.agreement", description=__doc__
    )
    parser.add_argument("--out", type=Path, default=Path("results/agreement.json"))
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--size", type=int, default=128)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    reference = Reference()
    counts = level_counts(reference, crops(64, 3))
    found = {
        "basicsr": reference.functions.version,
        "agreement": [asdict(each) for each in operators(reference)],
        "level_counts": counts,
        "distribution": asdict(compare(*renderings(reference, given.rows, given.size))),
        "distribution_of_default": asdict(
            compare(*renderings(reference, given.rows, given.size, compat=None))
        ),
    }
    write(given.out, json.dumps(found, indent=1))
    print(given.out)


if __name__ == "__main__":
    main()
