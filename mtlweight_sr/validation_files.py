"""The files of a validation set: images, manifest, and their hashes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mtlweight_sr.data import Photographs
from mtlweight_sr.degradation import degrade
from mtlweight_sr.degradation.parameters import DegradationParameters

FORMAT = 1
"""Version of the manifest's layout."""
MANIFEST = "manifest.json"
"""Name of the manifest in the folder of a set."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a set, after checking every file against its hash.

    Raises:
        FileNotFoundError: there is no manifest.
        ValueError: the manifest cannot be read, or a file is missing or changed.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(f"{str(folder)!r} holds no {MANIFEST}: no validation set.")
    try:
        manifest: dict[str, Any] = json.loads(file.read_bytes())
        found = manifest["format"]
        entries = [*manifest["hr"], *(e for row in manifest["lr"].values() for e in row)]
        hashes = {entry["file"]: entry["sha256"] for entry in entries}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(file)!r} is no manifest of a validation set.") from error
    if found != FORMAT:
        raise ValueError(f"{str(file)!r} must have format {FORMAT}, got {found!r}.")
    for name, sha256 in hashes.items():
        image = folder / name
        if not image.is_file():
            raise ValueError(f"{str(image)!r} is missing; delete the folder and build it anew.")
        if hashlib.sha256(image.read_bytes()).hexdigest() != sha256:
            raise ValueError(
                f"{str(image)!r} has changed since it was made; delete the folder and build it "
                "anew."
            )
    return manifest


def write_set(
    folder: Path,
    source: Photographs,
    crop: int | None,
    request: dict[str, Any],
    draws: dict[str, DegradationParameters],
) -> dict[str, Any]:
    """Degrade the photographs of a request and write images and manifest into `folder`.

    Args:
        folder: the folder to write into, made where it does not exist.
        source: the photographs.
        crop: side of the central crop; None cuts to multiples of the scale.
        request: what was asked for, as JSON has it; `images` and `scale` are read.
        draws: for each set, one row of parameters per photograph.

    Returns:
        The manifest.
    """
    hr_entries: list[dict[str, Any]] = []
    lr_entries: dict[str, list[dict[str, Any]]] = {name: [] for name in draws}
    for index in range(request["images"]):
        hr = _cut(source.image(index), crop, request["scale"])
        entry = _write_image(folder, f"hr/{index:04d}.png", hr)
        hr_entries.append({"name": source.names[index], **entry})
        for task, (name, parameters) in enumerate(draws.items()):
            row = parameters[index]
            with torch.no_grad():
                lr = degrade(hr[None].float() / 255, row)[0]
            levels = lr.mul(255).round().clamp(0, 255).byte()
            subfolder = f"lr/{task}_{re.sub(r'[^A-Za-z0-9-]+', '_', name)}"
            entry = _write_image(folder, f"{subfolder}/{index:04d}.png", levels)
            cube = [value.hex() for value in row.cube[0].tolist()]
            lr_entries[name].append({**entry, "cube": cube, "noise_seed": int(row.seed[0])})
    manifest = {
        "format": FORMAT,
        "request": request,
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("mtlweight", "torch", "numpy", "pillow")},
        },
        "hr": hr_entries,
        "lr": lr_entries,
    }
    _write(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    return manifest


def _cut(image: Tensor, crop: int | None, scale: int) -> Tensor:
    _, height, width = image.shape
    if crop is None:
        return image[:, : height - height % scale, : width - width % scale]
    top, left = (height - crop) // 2, (width - crop) // 2
    return image[:, top : top + crop, left : left + crop]


def _write_image(folder: Path, name: str, image: Tensor) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, format="PNG")
    content = buffer.getvalue()
    _write(folder / name, content)
    return {"file": name, "sha256": hashlib.sha256(content).hexdigest()}


def _write(file: Path, content: bytes) -> None:
    """Write a file to the disk; the folder around it is renamed last, which makes it atomic."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def read_image(file: Path) -> Tensor:
    """An 8-bit image file as `[1, 3, H, W]`, float32 in [0, 1]."""
    with Image.open(file) as image:
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
