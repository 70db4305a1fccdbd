"""The files of a validation set: images, manifest, and their hashes."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mtlweight_sr.data import Photographs
from mtlweight_sr.degradation.parameters import DegradationParameters
from mtlweight_sr.replay import cut, degraded, encode_png, pixels_hash, recorded, surroundings
from mtlweight_sr.training_files import write_atomically

FORMAT = 2
"""Version of the manifest's layout."""
MANIFEST = "manifest.json"
"""Name of the manifest in the folder of a set."""


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a set, without a look at its images.

    Args:
        path: the manifest or its folder.

    Raises:
        FileNotFoundError: there is no manifest.
        ValueError: it cannot be read.
    """
    file = path / MANIFEST if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{str(path)!r} holds no {MANIFEST}: no validation set.")
    try:
        manifest: dict[str, Any] = json.loads(file.read_bytes())
        found = manifest["format"]
        if found == FORMAT:
            _hashes(manifest)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(file)!r} is no manifest of a validation set.") from error
    if found != FORMAT:
        raise ValueError(
            f"{str(file)!r} must have format {FORMAT}, got {found!r}: another version of mtlweight "
            "made it; build the set anew."
        )
    return manifest


def check_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Compares every file of a set with its hash.

    Raises:
        ValueError: a file is missing or changed.
    """
    for name, sha256 in _hashes(manifest).items():
        image = folder / name
        if not image.is_file():
            raise ValueError(f"{str(image)!r} is missing; rebuild the set from its manifest.")
        if hashlib.sha256(image.read_bytes()).hexdigest() != sha256:
            raise ValueError(
                f"{str(image)!r} has changed since it was made; rebuild the set from its manifest."
            )


def _hashes(manifest: dict[str, Any]) -> dict[str, str]:
    entries = [*manifest["hr"], *(e for row in manifest["lr"].values() for e in row)]
    return {entry["file"]: entry["sha256"] for entry in entries}


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which gets the name `out` once all is written, or disappears.

    Raises:
        FileExistsError: `out` exists, before or after.
    """
    if out.exists():
        raise FileExistsError(f"`out` must not exist yet, got {str(out)!r}.")
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    try:
        yield unfinished
        if out.exists():
            raise FileExistsError(f"{str(out)!r} was made by another process meanwhile.")
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_set(
    folder: Path,
    source: Photographs,
    places: Sequence[int],
    request: dict[str, Any],
    draws: Mapping[str, DegradationParameters],
) -> dict[str, Any]:
    """Degrade the photographs of a request and write images and manifest into `folder`.

    Args:
        folder: the folder to write into, made where it does not exist.
        source: the photographs.
        places: which of them, by their indices.
        request: what was asked for, as JSON has it; `crop`, `scale` and `compat` are read.
        draws: for each set, one row of parameters per photograph.

    Returns:
        The manifest.
    """
    hr_entries: list[dict[str, Any]] = []
    lr_entries: dict[str, list[dict[str, Any]]] = {name: [] for name in draws}
    for index, place in enumerate(places):
        hr = cut(source.image(place), request["crop"], request["scale"])
        entry = _write_image(folder, f"hr/{index:04d}.png", hr)
        hr_entries.append({"name": source.names[place], **entry})
        for task, (name, parameters) in enumerate(draws.items()):
            row = parameters[index]
            lr = degraded(hr, row, compat=request["compat"])
            subfolder = f"lr/{task}_{re.sub(r'[^A-Za-z0-9-]+', '_', name)}"
            entry = _write_image(folder, f"{subfolder}/{index:04d}.png", lr)
            words = {"words": row.describe(0), "parameters": recorded(row)[0]}
            lr_entries[name].append(entry | words)
    manifest = {
        "format": FORMAT,
        "request": request,
        "versions": surroundings(),
        "hr": hr_entries,
        "lr": lr_entries,
    }
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    return manifest


def _write_image(folder: Path, name: str, image: Tensor) -> dict[str, Any]:
    content = encode_png(image)
    write_atomically(folder / name, content)
    hashes = {"sha256": hashlib.sha256(content).hexdigest(), "pixels": pixels_hash(image)}
    return {"file": name, **hashes}


def read_image(file: Path) -> Tensor:
    """An 8-bit image file as `[1, 3, H, W]`, float32 in [0, 1]."""
    with Image.open(file) as image:
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
