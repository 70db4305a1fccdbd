"""The ways from image files to crops that are measured."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mtlweight.interval_plan import SampleKey
from mtlweight_sr.data import BundledPhotographs, CropDataset, PhotographFolder
from mtlweight_sr.data.image_files import decode
from mtlweight_sr.data.loader import Cache, CropLoader

CROP = 256
BATCH = 12
Round = Callable[[], object]


@dataclass(frozen=True)
class Unit:
    """Files of one format and size.

    Attributes:
        suffix: `png` or `jpg`.
        height: Of the photographs.
        width: Of the photographs.
        images: How many.
    """

    suffix: str
    height: int
    width: int
    images: int = 12

    def __str__(self) -> str:
        return f"{self.suffix}-{self.height}x{self.width}"

    def write(self, folder: Path) -> PhotographFolder:
        """Writes the files, cut out of mosaics of the bundled photographs, and reads the folder."""
        photographs = [image.permute(1, 2, 0).numpy() for image in BundledPhotographs()]
        for index in range(self.images):
            mosaic = _mosaic(photographs[index % len(photographs) :] + photographs, self, index)
            options = {"quality": 92} if self.suffix == "jpg" else {}
            Image.fromarray(mosaic).save(folder / f"{index}.{self.suffix}", **options)
        return PhotographFolder(folder)


def _mosaic(photographs: list[np.ndarray], unit: Unit, index: int) -> np.ndarray:
    side = 288  # what the smallest photograph holds, and a place to start from
    draw = np.random.default_rng(index)
    rows = []
    for _ in range(-(-unit.height // side)):
        tiles = []
        for column in range(-(-unit.width // side)):
            image = photographs[column % len(photographs)]
            top, left = (draw.integers(n - side + 1) for n in image.shape[:2])
            tiles.append(image[top : top + side, left : left + side])
        rows.append(np.concatenate(tiles, 1))
    return np.concatenate(rows)[: unit.height, : unit.width]


@dataclass(frozen=True)
class Way:
    """A way to get crops, or whole images.

    Attributes:
        name: What the table says.
        count: How many a round gets.
        build: Makes a round from photographs.
        workers: Processes beside the one that is measured.
    """

    name: str
    count: int
    build: Callable[[PhotographFolder], Round]
    workers: int = 0

    def __str__(self) -> str:
        return f"{self.name}-{self.workers}".replace(" ", "-")


def _decoding(read: Callable[[Path], object], count: int) -> Callable[[PhotographFolder], Round]:
    def build(source: PhotographFolder) -> Round:
        files = [source.files[i % len(source)] for i in range(count)]
        return lambda: [read(file) for file in files]

    return build


def _torchvision(file: Path) -> object:
    from torchvision.io import ImageReadMode, decode_image, read_file

    return decode_image(read_file(str(file)), mode=ImageReadMode.RGB)


def _loading(cache: Cache, workers: int, count: int) -> Callable[[PhotographFolder], Round]:
    def build(source: PhotographFolder) -> Round:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        keys = [SampleKey(i % len(source), 0, i) for i in range(count)]
        plan = [keys[i : i + BATCH] for i in range(0, count, BATCH)]
        loader = CropLoader(
            CropDataset(source, CROP), plan, device=device, workers=workers, cache=cache
        )

        def all_batches() -> None:
            for _ in loader:
                pass
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return all_batches

    return build


def ways(unit: Unit) -> list[Way]:
    """Returns what is measured on files of a kind: caches don't depend on them."""
    few, many = (12, 60) if unit.height > 1000 else (48, 480)
    found = [
        Way("decode with Pillow", few, _decoding(decode, few)),
        Way("decode with torchvision", few, _decoding(_torchvision, few)),
        *(Way("none", few, _loading("none", n, few), n) for n in (0, 1, 2)),
    ]
    if unit.suffix == "png":
        found += [Way("host", many, _loading("host", n, many), n) for n in (0, 1, 2)]
        found.append(Way("device", many, _loading("device", 0, many)))
    return found


def cpu_seconds() -> float:
    """CPU time of this process and of its workers so far."""
    ticks = 0
    for process in multiprocessing.active_children():
        after_name = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(after_name[11]) + int(after_name[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")
