"""8-bit images degraded, what is recorded of it, and the same bits made again from the record."""

from __future__ import annotations

import hashlib
import io
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from importlib.metadata import version
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mtlweight_sr.degradation import degrade
from mtlweight_sr.degradation.parameters import (
    DegradationParameters,
    FinalParameters,
    StageParameters,
)
from mtlweight_sr.degradation.pipeline import Compat

__all__ = [
    "cut",
    "degraded",
    "encode_png",
    "pixels_hash",
    "recorded",
    "replayed",
    "surroundings",
]


def recorded(parameters: DegradationParameters) -> list[dict[str, Any]]:
    """Each row of parameters as JSON has it, exactly: floats are read back to the same bits."""
    rows = parameters.to("cpu")
    return [_values(rows[i]) for i in range(len(rows))]


def replayed(records: Sequence[Mapping[str, Any]]) -> DegradationParameters:
    """The rows that `recorded` wrote.

    Raises:
        ValueError: no record, records of different scales, or a record with other fields.
    """
    try:
        (scale,) = {record["scale"] for record in records}
        return DegradationParameters(
            scale=scale,
            first=StageParameters(**_columns(StageParameters, records, "first")),
            second=StageParameters(**_columns(StageParameters, records, "second")),
            final=FinalParameters(**_columns(FinalParameters, records, "final")),
            cube=torch.tensor([record["cube"] for record in records], dtype=torch.float64),
            seed=torch.tensor([record["seed"] for record in records], dtype=torch.int64),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"expected records of degradation parameters of one scale, at least one, got "
            f"{len(records)} of which one cannot be read ({type(error).__name__}: {error}); write "
            "what `recorded` returned"
        ) from error


def _values(row: Any) -> dict[str, Any]:
    values = {}
    for field in fields(row):
        value = getattr(row, field.name)
        if isinstance(value, Tensor):
            value = value[0].tolist()
        elif not isinstance(value, int):
            value = _values(value)
        values[field.name] = value
    return values


def _columns(table: type, records: Sequence[Mapping[str, Any]], name: str) -> dict[str, Tensor]:
    columns = {}
    for field in fields(table):
        values = [record[name][field.name] for record in records]
        kinds = {type(value) for value in values}
        if len(kinds) > 1 or not kinds <= {bool, int, float}:
            raise TypeError(f"{name}.{field.name} = {values[0]!r}")
        columns[field.name] = torch.tensor(
            values, dtype=torch.float64 if kinds == {float} else None
        )
    return columns


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums are rounded in one order, whatever the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def degraded(image: Tensor, row: DegradationParameters, *, compat: Compat | None = None) -> Tensor:
    """Degrades one 8-bit image on the CPU, to bits that do not depend on the number of cores.

    Args:
        image: uint8 `[3, H, W]`, sides divisible by the scale.
        row: one row of parameters.
        compat: as `degrade` takes it.

    Returns:
        uint8 `[3, H / scale, W / scale]`.
    """
    with _one_thread():
        lr = degrade(image[None].float() / 255, row, compat=compat)[0]
    return lr.mul(255).round().byte()


def cut(image: Tensor, crop: int | None, scale: int) -> Tensor:
    """The central `crop` x `crop` of `[3, H, W]`; None cuts right and bottom to whole LR pixels."""
    _, height, width = image.shape
    if crop is None:
        return image[:, : height - height % scale, : width - width % scale]
    top, left = (height - crop) // 2, (width - crop) // 2
    return image[:, top : top + crop, left : left + crop]


def pixels_hash(image: Tensor) -> str:
    """SHA-256 of the size and the pixels of uint8 `[3, H, W]`, whatever file they are kept in."""
    pixels = image.permute(1, 2, 0).contiguous()
    return hashlib.sha256(f"{list(pixels.shape)}".encode() + pixels.numpy().tobytes()).hexdigest()


def encode_png(image: Tensor) -> bytes:
    """Uint8 `[3, H, W]` as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, format="PNG")
    return buffer.getvalue()


def surroundings() -> dict[str, str]:
    """Versions, and the kind of CPU: what pixels may depend on beside images and parameters."""
    packages = ("mtlweight", "torch", "numpy", "pillow")
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
