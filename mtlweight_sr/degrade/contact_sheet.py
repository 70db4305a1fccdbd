"""A picture of what each task does: the same photographs, degraded in every task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mtlweight_sr.degradation.columns import NOISE_TYPES
from mtlweight_sr.degradation.parameters import DegradationParameters, StageParameters
from mtlweight_sr.degradation.pipeline import Compat
from mtlweight_sr.degrade.sheet_drawing import Heading, Row, draw_sheet
from mtlweight_sr.replay import degraded
from mtlweight_sr.tasks.draws import TaskDraws

__all__ = ["Sample", "contact_sheet", "short_words"]

_LEGEND = (
    "A row is one photograph, drawn with one id in every task; in colour is what differs. "
    "Captions: 1, 2 the stages (kernel and its size; resize, noise, JPEG), 3 the end."
)
_FAMILIES = ("iso", "aniso", "general iso", "general aniso", "plateau iso", "plateau aniso")


class Sample(NamedTuple):
    """A row of the sheet."""

    name: str
    image: Tensor
    """The photograph, uint8 `[3, H, W]`, sides divisible by the scale."""
    id: int
    """What its parameters are drawn with, the same in every task."""
    stream: int = 0


def contact_sheet(
    samples: Sequence[Sample],
    tasks: TaskDraws,
    *,
    seed: int,
    title: str = "",
    names: Sequence[str] | None = None,
    compat: Compat | None = None,
    side: int = 64,
) -> Image.Image:
    """Draws a row per sample: its LR image without degradation, then its LR image in each task.

    A sample has one id in every task, hence common random numbers where tasks are boxes: what a
    caption has in colour is all that differs between the images of a row.

    Args:
        samples: the rows, at least one.
        tasks: the columns.
        seed: seed of parameters and noise.
        title: a line above the sheet.
        names: which of the tasks to draw; None draws all.
        compat: as `degrade` takes it.
        side: how much of each LR image is shown, in pixels around its middle; drawn three times as
            large.

    Raises:
        ValueError: no sample, or no `side`.
    """
    if not samples or side < 1:
        raise ValueError(
            f"expected `samples` and a `side` of at least 1, got {len(samples)} samples and side "
            f"{side}; write contact_sheet([Sample(name, image, id=0)], tasks, seed=0)"
        )
    scale = tasks.space.scale
    names = tuple(tasks.names if names is None else names)
    headings = [Heading("clean", [f"bicubic resize to 1/{scale}"]), *_headings(tasks, names)]
    rows = []
    for sample in samples:
        height, width = sample.image.shape[1:]
        size = f"HR {width} × {height}, LR {width // scale} × {height // scale}"
        drawn = [tasks.draw(name, [sample.id], seed, stream=sample.stream) for name in names]
        pictures = [degraded(sample.image, row, compat=compat) for row in drawn]
        rows.append(
            Row(
                [_middle(picture, side) for picture in [_bicubic(sample.image, scale), *pictures]],
                [sample.name, size],
                [short_words(row, 0) for row in drawn],
            )
        )
    return draw_sheet(headings, rows, title=title, legend=_LEGEND)


def short_words(parameters: DegradationParameters, i: int) -> list[list[str]]:
    """Row `i` in five short lines: kernel, resize and noise of each stage, then the end.

    The lines of all rows have the same number of pieces, some of them empty.
    """
    row = parameters[i].to("cpu")
    second, final = row.second, row.final
    first_jpeg = _jpeg(row.first)
    jpeg = _jpeg(second)
    sinc = ["no sinc", "", ""]
    if final.sinc:
        sinc = ["sinc ", f"{int(final.kernel_size)}", f", cutoff {float(final.omega):.2f}"]
    before, after = ("", f", {jpeg}") if final.before_jpeg else (f"{jpeg}, ", "")
    return [
        _blur(row.first),
        [*_resize_and_noise(row.first), f", {first_jpeg}"],
        _blur(second),
        _resize_and_noise(second),
        [before, *sinc, after],
    ]


def _blur(stage: StageParameters) -> list[str]:
    if not stage.blur:
        return ["no blur", "", ""]
    size = f"{int(stage.kernel_size)}"
    if stage.sinc:
        return ["sinc ", size, f", cutoff {float(stage.omega):.2f}"]
    family = int(stage.family)
    sigma = f", σ {float(stage.sigma_x):.1f}"
    if family % 2:
        sigma += f"/{float(stage.sigma_y):.1f}"
    return [f"{_FAMILIES[family]} ", size, sigma]


def _resize_and_noise(stage: StageParameters) -> list[str]:
    kind = NOISE_TYPES[int(stage.noise_type)]
    strength = float(stage.noise_strength)
    noise = {
        "gaussian": [", Gauss ", f"{strength:.1f}"],
        "poisson": [", Poisson ", f"{strength:.2f}"],
        "none": [", no noise", ""],
    }[kind]
    gray = " gray" if stage.gray_noise and kind != "none" else ""
    return [f"×{float(stage.resize_scale):.2f}", *noise, gray]


def _jpeg(stage: StageParameters) -> str:
    return f"JPEG {float(stage.jpeg_quality):.0f}" if stage.jpeg else "no JPEG"


def _headings(tasks: TaskDraws, names: Sequence[str]) -> list[Heading]:
    """Of each task its name, natural probability and definition."""
    lines = tasks.describe().splitlines()
    headings = []
    for name in names:
        line = next((line for line in lines if line.startswith(f"{name} (p = ")), "")
        mass = tasks.masses[name]
        probability = str(mass) if mass.denominator <= 100 else f"{float(mass):.3f}"
        headings.append(
            Heading(name, [f"natural probability {probability}", line.partition("): ")[2]])
        )
    return headings


def _bicubic(image: Tensor, scale: int) -> Tensor:
    """The LR image that nothing but the resize has touched, by Pillow's antialiased bicubic."""
    height, width = image.shape[1:]
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    small = picture.resize((width // scale, height // scale), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def _middle(image: Tensor, side: int) -> Tensor:
    height, width = (min(size, side) for size in image.shape[1:])
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width]
