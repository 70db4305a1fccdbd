"""The photographs and the rows of parameters that are degraded."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mtlweight_sr.degradation import (
    COLUMNS,
    REALESRGAN_X4,
    DegradationParameters,
    DegradationSpace,
    parameters_from_cube,
)

PHOTOGRAPHS = ("astronaut", "coffee", "rocket")


def crops(size: int, batch: int, seed: int = 0) -> Tensor:
    """Returns crops `[B, 3, size, size]` of scikit-image's photographs, 8-bit levels."""
    from skimage import data

    photographs = [getattr(data, name)() for name in PHOTOGRAPHS]
    draw = np.random.default_rng(seed)
    found = []
    for i in range(batch):
        photograph = photographs[i % len(photographs)]
        top, left = (int(draw.integers(side - size + 1)) for side in photograph.shape[:2])
        crop = photograph[top : top + size, left : left + size]
        found.append(crop[:, ::-1] if draw.random() < 0.5 else crop)
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous().float() / 255


def stratified(rounds: int, batch: int, seed: int = 0, *, per_batch: bool = False) -> Tensor:
    """Returns cubes `[rounds, B, 38]` whose every column is spread evenly over [0, 1).

    A Latin hypercube: few rounds then stand for the whole distribution.

    Args:
        rounds: How many batches.
        batch: Rows of each.
        seed: Of the draw.
        per_batch: Spread over rounds, the same in all rows of a round: for choices made per batch.
    """
    generator = torch.Generator().manual_seed(seed)
    count = rounds if per_batch else rounds * batch
    cells = [torch.randperm(count, generator=generator) for _ in COLUMNS]
    inside = torch.rand(count, len(COLUMNS), dtype=torch.float64, generator=generator)
    cube = (torch.stack(cells, -1) + inside) / count
    if per_batch:
        return cube[:, None].expand(-1, batch, -1).clone()
    return cube.view(rounds, batch, -1)


def rows_of(
    cube: Tensor, seed: int = 0, space: DegradationSpace = REALESRGAN_X4
) -> DegradationParameters:
    """Returns the parameters of a cube `[B, 38]`."""
    seeds = torch.arange(len(cube)) + seed * len(cube)
    return parameters_from_cube(space, cube, seeds)
