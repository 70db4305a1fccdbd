"""The operators in their published order, on some rows of a batch at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mtlweight_sr.degradation.batching import Canvas, merged
from mtlweight_sr.degradation.blur import blur
from mtlweight_sr.degradation.columns import NOISE_TYPES
from mtlweight_sr.degradation.jpeg import JpegMode, jpeg
from mtlweight_sr.degradation.kernels import Kernels, degradation_kernels
from mtlweight_sr.degradation.noise import add_noise, normal_fields
from mtlweight_sr.degradation.parameters import DegradationParameters, StageParameters
from mtlweight_sr.degradation.poisson import Levels
from mtlweight_sr.degradation.precision import sent
from mtlweight_sr.degradation.resize import Size, resize_by, resize_to, scaled_size
from mtlweight_sr.degradation.space import MODES

__all__ = ["Stages"]

_NO_NOISE = NOISE_TYPES.index("none")


class _Columns:
    """The columns of a stage; those that steer Python code as lists, read from tensors once."""

    def __init__(self, stage: StageParameters) -> None:
        self.stage = stage
        self.factor: list[float] = stage.resize_scale.tolist()
        self.mode = [MODES[number] for number in stage.resize_mode.tolist()]
        self.noisy = [number != _NO_NOISE for number in stage.noise_type.tolist()]
        self.gray: list[bool] = stage.gray_noise.tolist()
        self.jpeg: list[bool] = stage.jpeg.tolist()


def _picked(column: Tensor, rows: list[int]) -> Tensor:
    # A slice of one row costs a fraction of what an index costs.
    return column[rows[0] : rows[0] + 1] if len(rows) == 1 else column[rows]


@dataclass(frozen=True)
class Stages:
    """The whole pipeline in two halves, between which rows may be put together anew.

    Attributes:
        kernels: The blurs of the two stages and the final sinc filter.
        columns: The two stages.
        before_jpeg: Rows whose last resize and filter come before the second JPEG.
        final_mode: Interpolation of each row's last resize.
        keys: The key of each row's noise.
        lr_sizes: Height and width of each row's LR image.
        late_sizes: Those after the second resize.
        generator: Draws all noise instead, if given.
        codec: Which JPEG.
        levels: As in `add_noise`.
    """

    kernels: tuple[Kernels, Kernels, Kernels]
    columns: tuple[_Columns, _Columns]
    before_jpeg: list[bool]
    final_mode: list[str]
    keys: list[int]
    lr_sizes: list[Size]
    late_sizes: list[Size]
    generator: torch.Generator | None
    codec: JpegMode
    levels: Levels

    @classmethod
    def of(
        cls,
        parameters: DegradationParameters,
        lr_sizes: list[Size],
        generator: torch.Generator | None,
        codec: JpegMode,
        levels: Levels,
    ) -> Stages:
        """Everything of a batch of parameters that the operators need."""
        final = parameters.final
        columns = _Columns(parameters.first), _Columns(parameters.second)
        pairs = zip(lr_sizes, columns[1].factor, strict=True)
        return cls(
            kernels=degradation_kernels(parameters),
            columns=columns,
            before_jpeg=final.before_jpeg.tolist(),
            final_mode=[MODES[number] for number in final.resize_mode.tolist()],
            keys=parameters.seed.tolist(),
            lr_sizes=lr_sizes,
            late_sizes=[scaled_size(size, factor) for size, factor in pairs],
            generator=generator,
            codec=codec,
            levels=levels,
        )

    def first(self, x: Canvas, rows: list[int]) -> Canvas:
        """From HR images to the second resize; on a CPU to the second noise.

        There noise comes while images are still apart, each of its own size; elsewhere all rows of
        a batch take it together.
        """
        one, two = self.columns
        factors = [one.factor[i] for i in rows]
        x = self._blurred(x, rows, 0)
        sizes = [scaled_size(size, factor) for size, factor in zip(x.sizes, factors, strict=True)]
        modes = [one.mode[i] for i in rows]
        x = Canvas(resize_by(x.images, factors, modes, x.ragged), sizes)
        x = self._noisy(x, rows, 0)
        x = self._compressed(x, rows, 0)
        x = self._blurred(x, rows, 1)
        sizes = [self.late_sizes[i] for i in rows]
        x = Canvas(resize_to(x.images, sizes, [two.mode[i] for i in rows], x.ragged), sizes)
        return self._noisy(x, rows, 1) if x.images.is_cpu else x

    def second(self, x: Canvas, rows: list[int]) -> Canvas:
        """From what `first` leaves to LR images; rows with `before_jpeg` must come first."""
        count = sum(self.before_jpeg[i] for i in rows)
        early, late = rows[:count], rows[count:]
        if not x.images.is_cpu:
            x = self._noisy(x, rows, 1)
        if not late:
            x = self._compressed(self._finished(x, early).clamped(), early, 1)
        elif not early:
            x = self._finished(self._compressed(x, late, 1), late)
        else:
            # One JPEG for both orders.
            x = merged([self._finished(x[:count], early).clamped(), x[count:]])
            x = self._compressed(x, rows, 1)
            x = merged([x[:count], self._finished(x[count:], late)])
        return x.of((x.images.clamp(0, 1) * 255).round_().div_(255))

    def _blurred(self, x: Canvas, rows: list[int], number: int) -> Canvas:
        kernels = self.kernels[number][rows[0] if len(rows) == 1 else rows]
        return x.of(blur(x.images, kernels, x.ragged))

    def _noisy(self, x: Canvas, rows: list[int], number: int) -> Canvas:
        columns = self.columns[number]
        if not any(columns.noisy[i] for i in rows):
            return x.clamped()
        gray = [columns.gray[i] for i in rows]
        height, width = x.images.shape[-2:]
        device = x.images.device
        if self.generator is None:
            keys = [self.keys[i] for i in rows]
            normals = normal_fields(
                keys, number + 1, (height, width), x.ragged, gray=gray, device=device
            )
        else:
            shape = len(rows), 1 if all(gray) else 3, height, width
            normals = torch.randn(
                shape, dtype=torch.float32, generator=self.generator, device=device
            )
        kind = _picked(columns.stage.noise_type, rows)
        strength = _picked(columns.stage.noise_strength, rows)
        shared = _picked(columns.stage.gray_noise, rows)
        images = add_noise(x.images, kind, strength, shared, normals, x.ragged, levels=self.levels)
        return x.of(images)

    def _compressed(self, x: Canvas, rows: list[int], number: int) -> Canvas:
        columns = self.columns[number]
        flags = [columns.jpeg[i] for i in rows]
        if not any(flags):
            return x
        quality = _picked(columns.stage.jpeg_quality, rows)
        images = jpeg(x.images, quality, self.codec, x.ragged)
        if not all(flags):
            chosen = sent(torch.tensor(flags), images.device).view(-1, 1, 1, 1)
            images = torch.where(chosen, images, x.images)
        return x.of(images)

    def _finished(self, x: Canvas, rows: list[int]) -> Canvas:
        sizes = [self.lr_sizes[i] for i in rows]
        images = resize_to(x.images, sizes, [self.final_mode[i] for i in rows], x.ragged)
        return self._blurred(Canvas(images, sizes), rows, 2)
