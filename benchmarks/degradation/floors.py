"""The least time an operator can take: its arithmetic, traffic and random numbers at full speed.

The speeds are those of the machine at the moment, measured in the rounds in which the operators
are: a large matrix product, a copy, and `torch.randn`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mtlweight_sr.degradation import DegradationParameters, StageParameters

FLOAT = 4
SIDE = 1024
NUMBERS = 1 << 22


@dataclass(frozen=True)
class Work:
    """What an operator can't do without.

    Attributes:
        flops: Multiplications and additions.
        moved: Bytes read and written.
        normals: Normal numbers drawn.
    """

    flops: float = 0.0
    moved: float = 0.0
    normals: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops, self.moved + other.moved, self.normals + other.normals
        )

    def times(self, factor: float) -> Work:
        return Work(self.flops * factor, self.moved * factor, self.normals * factor)

    def seconds(self, speeds: dict[str, float]) -> float:
        """Returns the time it takes at the speeds of `limits`, one part after the other."""
        return (
            self.flops / speeds["product"]
            + self.moved / speeds["copy"]
            + self.normals / speeds["randn"]
        )


AMOUNTS = {"product": 2.0 * SIDE**3, "copy": 2.0 * FLOAT * NUMBERS, "randn": float(NUMBERS) / 4}
"""What one call of each limit does, in the units of `Work`."""


def limits(device: torch.device) -> dict[str, Callable[[int], object]]:
    """Returns what the speeds are measured by."""
    a, b, c = (torch.rand(SIDE, SIDE, device=device) for _ in range(3))
    source, target = (torch.rand(NUMBERS, device=device) for _ in range(2))
    drawn = torch.empty(NUMBERS // 4, device=device)
    return {
        "product": lambda turn: torch.mm(a, b, out=c),
        "copy": lambda turn: target.copy_(source),
        "randn": lambda turn: drawn.normal_(),
    }


def _pass(values_in: float, values_out: float | None = None) -> Work:
    """Reading and writing every value once."""
    out = values_in if values_out is None else values_out
    return Work(moved=FLOAT * (values_in + out))


def blur(height: int, width: int, size: int, *, separable: bool) -> Work:
    """Work of filtering one image, by the way that needs the least.

    Dense: every tap of every value. Separable: two lines of taps, two passes. Fourier: three
    transforms there and three back of the padded image, 2.5 N log2 N each, six passes.
    """
    values = 3 * height * width
    padded = (height + size - 1) * (width + size - 1)
    fourier = 6 * 2.5 * padded * torch.tensor(float(padded)).log2().item()
    dense = Work(flops=2 * size**2 * values) + _pass(values)
    transformed = Work(flops=fourier) + _pass(6 * values)
    if separable:
        return Work(flops=4 * size * values) + _pass(2 * values)
    return min(dense, transformed, key=_typical)


def _typical(work: Work) -> float:
    return work.seconds({"product": 60e9, "copy": 20e9, "randn": 2e8})


def resize(height: int, width: int, out_height: int, out_width: int) -> Work:
    """Work of one resize: what is read and written; the few taps are free."""
    return _pass(3 * height * width, 3 * out_height * out_width)


def resize_by(height: int, width: int, factor: float) -> Work:
    """Work of a resize by a factor."""
    return resize(height, width, int(height * factor), int(width * factor))


def gaussian(height: int, width: int, *, gray: bool) -> Work:
    """Work of the noise of one image: a normal number a value, or a pixel where gray; one pass."""
    pixels = height * width
    return Work(normals=pixels if gray else 3 * pixels) + _pass(3 * pixels)


def poisson(height: int, width: int, *, gray: bool) -> Work:
    """Work of the noise of one image: as Gaussian noise; its levels are counted before."""
    pixels = height * width
    return gaussian(height, width, gray=gray) + Work(moved=FLOAT * 3 * pixels)


def jpeg(height: int, width: int) -> Work:
    """Work of one codec: 64 x 64 transforms of blocks, there and back, chroma at half size."""
    return Work(flops=2 * 128 * 1.5 * height * width) + _pass(3 * height * width)


def sharpening(height: int, width: int) -> Work:
    """Work of one sharpening: two separable filters of 51 taps."""
    values = 3 * height * width
    return Work(flops=2 * 4 * 51 * values) + _pass(4 * values)


def stage_blur(stage: StageParameters, i: int, height: int, width: int) -> Work:
    """Work of the blur of one row."""
    separable = not bool(stage.sinc[i]) and int(stage.family[i]) == 0
    return blur(height, width, int(stage.kernel_size[i]), separable=separable)


def _noise(stage: StageParameters, i: int, height: int, width: int) -> Work:
    of = gaussian if int(stage.noise_type[i]) == 0 else poisson
    return of(height, width, gray=bool(stage.gray_noise[i]))


def pipeline(rows: DegradationParameters, height: int, width: int) -> Work:
    """Work of a batch of HR images."""
    total = Work()
    low = height // rows.scale, width // rows.scale
    for i in range(len(rows)):
        first, second, final = rows.first, rows.second, rows.final
        total += stage_blur(first, i, height, width) if first.blur[i] else Work()
        factor = float(first.resize_scale[i])
        one = int(height * factor), int(width * factor)
        total += resize(height, width, *one)
        total += _noise(first, i, *one) + jpeg(*one)
        total += stage_blur(second, i, *one) if second.blur[i] else Work()
        factor = float(second.resize_scale[i])
        two = int(low[0] * factor), int(low[1] * factor)
        total += resize(*one, *two) + _noise(second, i, *two)
        total += resize(*two, *low) + jpeg(*(low if final.before_jpeg[i] else two))
        if final.sinc[i]:
            total += blur(*low, int(final.kernel_size[i]), separable=False)
        total += _pass(3 * low[0] * low[1])
    return total
