"""How far ours is from BasicSR's functions, operator by operator and in distribution.

python -m benchmarks.degradation.agreement --out results/agreement.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.degradation.distribution import compare, renderings
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
