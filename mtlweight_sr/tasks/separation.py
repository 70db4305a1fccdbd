"""How far apart tasks are: the share of a cheap score's variance that lies between them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtlweight_sr.data import Photographs
from mtlweight_sr.degradation import DegradationParameters, degrade
from mtlweight_sr.evaluation import bicubic
from mtlweight_sr.metrics import psnr_y
from mtlweight_sr.replay import cut
from mtlweight_sr.tasks.draws import TaskDraws
from mtlweight_sr.training_files import write_json

__all__ = ["Separation", "measure_separation", "separation", "separation_of"]

_STREAM = 2**32 - 2
_FORMAT = 1
_LEAST = 3  # ids per photograph: two of them must be left when the jackknife drops one
_MOST = 100.0  # dB, of two images that are equal
_LITTLE = 0.03


@dataclass(frozen=True)
class Separation:
    """How far apart tasks are, in the PSNR-Y of bicubic enlargement within a photograph.

    Attributes:
        share: The share of the variance that lies between tasks, each weighed by its natural
            probability; an unbiased estimate, which may fall below 0 where there is nothing.
        error: Its standard error over rows of parameters, for these photographs.
        deviation: The standard deviation of the score within a photograph, in dB.
        gaps: How much easier each task is than the mixture of all, in dB.
        errors: The standard error of each gap.
        rows: The number of LR images.
        photographs: The number of photographs.
    """

    share: float
    error: float
    deviation: float
    gaps: dict[str, float]
    errors: dict[str, float]
    rows: int
    photographs: int

    def describe(self) -> str:
        """The same in two sentences."""
        gaps = ", ".join(f"{name} {gap:+.2f}" for name, gap in self.gaps.items())
        words = (
            f"{max(self.share, 0):.1%} ± {self.error:.1%} of the variance of bicubic PSNR-Y within "
            f"a photograph lies between tasks ({gaps} dB, each ± {max(self.errors.values()):.2f}; "
            f"{self.rows} crops of {self.photographs} photographs)."
        )
        if self.share < _LITTLE:
            words += (
                " That is little: by this measure the samples of a task differ nearly as much as "
                "those of the whole space."
            )
        return words


def separation(scores: Tensor, masses: Sequence[float]) -> tuple[float, float, float]:
    r"""The share of the variance of scores that lies between tasks, without bias.

    With $y_{ijt}$ the score of row $j$ of photograph $i$ in task $t$,
    $d_{ijt}=y_{ijt}-\sum_u p_u y_{iju}$ and $\bar d_t$ its mean, the variance between tasks is
    $\sum_t p_t(\bar d_t^2-\widehat{\mathrm{Var}}\,\bar d_t)$. It is divided by the variance of the
    mixture within a photograph. Rows that tasks share (common random numbers) cancel in $d$.

    Args:
        scores: `[photographs, rows, tasks]`, at least three rows.
        masses: The natural probability of each task, `[tasks]`.

    Returns:
        The share, its standard error (jackknife over rows within photographs), and the standard
        deviation of the mixture within a photograph.

    Raises:
        ValueError: Fewer than three rows.

    Source: ours; it is the estimator of a variance component under stratified sampling.
    """
    count, rows, _ = scores.shape
    if rows < _LEAST:
        raise ValueError(f"expected at least {_LEAST} rows per photograph, got {rows}")
    p = torch.tensor(masses, dtype=torch.float64)
    scores = scores.double()
    whole = _moments(scores, p)
    share = _share([some.mean(0) for some in whole], p, count)
    kept = torch.stack([torch.tensor([j for j in range(rows) if j != k]) for k in range(rows)])
    without = []
    for i in range(count):
        fewer = _moments(scores[i][kept], p)
        means = [
            all_.mean(0) + (new - all_[i]) / count for all_, new in zip(whole, fewer, strict=True)
        ]
        without.append(_share(means, p, count))
    spread = torch.stack(without)
    variance = (rows - 1) / rows * (spread - spread.mean(1, keepdim=True)).square().sum()
    return float(share), float(variance.sqrt()), float(whole[2].mean().clamp(min=0).sqrt())


def _moments(scores: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of scores `[n, rows, T]`: gaps `[n, T]`, their variances `[n, T]`, total variance `[n]`."""
    rows = scores.shape[1]
    mixture = scores @ p
    gaps = scores - mixture[..., None]
    # The square of an estimated mean is too large by the variance of the estimate.
    total = (scores.square() @ p).mean(1) - mixture.mean(1).square() + mixture.var(1) / rows
    return gaps.mean(1), gaps.var(1) / rows, total


def _share(means: Sequence[Tensor], p: Tensor, count: int) -> Tensor:
    gaps, variances, total = means
    between = (gaps.square() - variances / count) @ p
    return torch.where(total > 0, between / total, 0)


def measure_separation(
    tasks: TaskDraws, photographs: Photographs, *, rows: int = 240, crop: int = 128, seed: int = 0
) -> Separation:
    """Degrades central crops in every task and compares the PSNR-Y of their bicubic enlargement.

    The same ids are drawn in every task. It takes some seconds on one core, and the same arguments
    give the same numbers.

    Args:
        tasks: The tasks.
        photographs: HR images; some of them are taken, evenly spread.
        rows: About how many LR images to make; more where there are many tasks, of which each gets
            three at least.
        crop: Side of the HR crops in pixels, less where the photographs are smaller.
        seed: Of parameters and noise.

    Raises:
        ValueError: `rows` below 1, or crops smaller than 3 LR pixels.
    """
    if rows < 1:
        raise ValueError(f"expected `rows` >= 1, got {rows}; write rows=240")
    places, ids = _plan(len(photographs), len(tasks.names), rows)
    side = _side(photographs, places, crop, tasks.space.scale)
    draws = _draw(tasks, len(places) * ids, seed)
    enlarge = bicubic(tasks.space.scale)
    scores = torch.empty(len(places), ids, len(tasks.names), dtype=torch.float64)
    for i, place in enumerate(places):
        pixels = cut(photographs.image(place), side, tasks.space.scale)
        hr = pixels[None].float().div(255).expand(ids, -1, -1, -1)
        for t, drawn in enumerate(draws):
            lr = degrade(hr, drawn[i * ids : (i + 1) * ids])
            found = psnr_y(enlarge(lr), hr, tasks.space.scale)
            scores[i, :, t] = found.clamp(max=_MOST)
    # Tasks that leave a part of the space out are compared with their own mixture.
    total = sum(tasks.masses.values())
    masses = [float(tasks.masses[name] / total) for name in tasks.names]
    share, error, deviation = separation(scores, masses)
    gaps, variances, _ = _moments(scores, torch.tensor(masses, dtype=torch.float64))
    errors = (variances.mean(0) / len(places)).sqrt()
    return Separation(
        share,
        error,
        deviation,
        gaps=dict(zip(tasks.names, gaps.mean(0).tolist(), strict=True)),
        errors=dict(zip(tasks.names, errors.tolist(), strict=True)),
        rows=scores.numel(),
        photographs=len(places),
    )


def separation_of(file: Path, tasks: TaskDraws, photographs: Photographs) -> Separation:
    """What `measure_separation` finds, kept in a JSON file for the next time.

    Args:
        file: Where to keep it; another definition of the tasks, or other photographs, replace it.
        tasks: The tasks.
        photographs: HR images.
    """
    key = _key(tasks, photographs)
    if file.is_file():
        try:
            content = json.loads(file.read_bytes())
            if content["key"] == key:
                return Separation(**content["separation"])
        except (ValueError, KeyError, TypeError):
            pass  # it can be measured again
    found = measure_separation(tasks, photographs)
    write_json(file, {"key": key, "separation": asdict(found)})
    return found


def _plan(photographs: int, tasks: int, rows: int) -> tuple[list[int], int]:
    """Which photographs, and how many ids for each."""
    count = min(photographs, max(1, rows // (4 * tasks)))
    ids = max(_LEAST, rows // (tasks * count))
    return [i * photographs // count for i in range(count)], ids


def _side(photographs: Photographs, places: Sequence[int], crop: int, scale: int) -> int:
    side = min(crop, *(min(photographs.sizes[place]) for place in places))
    side -= side % scale
    if side < 3 * scale:  # the border is left out on both sides
        raise ValueError(
            f"expected a `crop` and photographs of at least {3 * scale} pixels, got {side}; write "
            "crop=128"
        )
    return side


def _draw(tasks: TaskDraws, count: int, seed: int) -> list[DegradationParameters]:
    return [tasks.draw(name, range(count), seed, _STREAM) for name in tasks.names]


def _key(tasks: TaskDraws, photographs: Photographs) -> dict[str, Any]:
    # The rows themselves tell any two definitions apart, where words may round.
    rows = hashlib.sha256()
    for drawn in _draw(tasks, 64, 0):
        rows.update(drawn.cube.numpy().tobytes() + drawn.seed.numpy().tobytes())
    return {
        "format": _FORMAT,
        "scale": tasks.space.scale,
        "masses": {name: str(mass) for name, mass in tasks.masses.items()},
        "rows": rows.hexdigest(),
        "photographs": photographs.content_hash(),
    }
