"""Writes what BasicSR's functions return on small inputs, for tests that run without BasicSR.

    python -m benchmarks.degradation.vectors tests/data/basicsr.npz

Inputs are in the file too. To be run again only when what is stored changes; the file is data that
BasicSR computed, no part of it.
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from skimage.data import astronaut

from benchmarks.degradation.agreement import NOISELESS, grains, of_family
from benchmarks.degradation.images import rows_of, stratified
from benchmarks.degradation.reference import Reference
from mtlweight_sr.degradation import FAMILIES

FACE = slice(60, 156), slice(180, 276)  # of a photograph that is in the public domain
STEPS = (1, 2, 5, 16, 40, 90, 256)
QUALITIES = (30.0, 49.9, 75.3, 95.0)
ROWS = 16
SHOWN = ("isotropic", "generalised_anisotropic", "plateau_anisotropic", "sinc")


@torch.no_grad()
def vectors(reference: Reference) -> dict[str, np.ndarray]:
    """Returns inputs and results by name."""
    image = torch.from_numpy(astronaut()[FACE]).permute(2, 0, 1)[None].contiguous() / 255
    small = image[..., :29, :35].contiguous()
    cube = stratified(1, ROWS)[0]
    families = (*FAMILIES, "sinc")
    for i in range(ROWS):
        cube[i] = of_family(cube[i : i + 1], families[i % len(families)])[0]
    rows = rows_of(cube, space=NOISELESS)
    kernels = reference.kernels(rows.first)
    few = kernels[[families.index(name) for name in SHOWN]]
    quality = torch.tensor(QUALITIES)
    coarse = [((image * 255 // step) * step / 255) for step in STEPS]
    strength = torch.ones(1)
    fields = [
        [reference.poisson_noise(x, strength, torch.tensor([gray])) for gray in (False, True)]
        for x in coarse
    ]
    found = {
        "image": (image[0] * 255).round().byte(),
        "cube": cube,
        "kernels": kernels,
        "few": few,
        "blurred": reference.blur(small.expand(len(few), -1, -1, -1).contiguous(), few),
        "qualities": quality,
        "compressed": reference.jpeg(small.expand(len(quality), -1, -1, -1), quality),
        "sharpened": reference.sharpen(image[..., :56, :64].contiguous())[0],
        "steps": torch.tensor(STEPS),
        "grains": torch.tensor(
            [
                [grains(x[0], field[0], gray=bool(gray)) for gray, field in enumerate(both)]
                for x, both in zip(coarse, fields, strict=True)
            ]
        ),
        "whole": torch.cat([reference.degrade(image, rows[i]) for i in range(ROWS)])
        .mul(255)
        .round()
        .byte(),
        "version": torch.tensor([int(part) for part in reference.functions.version.split(".")]),
    }
    return {name: value.numpy() for name, value in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.degradation.vectors", description=__doc__
    )
    parser.add_argument("path", type=Path)
    path: Path = parser.parse_args(arguments).path
    torch.manual_seed(0)
    written = io.BytesIO()
    np.savez_compressed(written, **vectors(Reference()))
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_bytes(written.getvalue())
    os.replace(new, path)
    print(f"{path}: {path.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
