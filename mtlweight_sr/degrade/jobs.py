"""Which image files to degrade, by which parameters: from the command line or from a record."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mtlweight_sr.data import BundledPhotographs
from mtlweight_sr.data.image_files import SUFFIXES
from mtlweight_sr.degradation.parameters import DegradationParameters
from mtlweight_sr.degradation.pipeline import Compat
from mtlweight_sr.replay import replayed

__all__ = ["FORMAT", "Found", "Job", "find_images", "jobs_of", "read_record"]

FORMAT = 1
"""Version of the record's layout."""


class Found(NamedTuple):
    """An image file to degrade."""

    file: Path
    name: str
    """Its path below the folder that was asked for, or its file name."""


@dataclass(frozen=True)
class Job:
    """One image to make.

    Attributes:
        found: the image.
        output: path of the degraded image below the folder of results.
        crop: side of the central crop; None keeps the whole image.
        row: one row of parameters.
        task: the task the row belongs to; None where no task holds it.
        id: what the row was drawn with, the place of the image.
        turn: which of the images made from that photograph.
        compat: as `degrade` takes it.
        expected: hash of the pixels on record; None for a new image.
        source: hash of the image file on record.
    """

    found: Found
    output: str
    crop: int | None
    row: DegradationParameters
    task: str | None
    id: int
    turn: int
    compat: Compat | None
    expected: str | None = None
    source: str | None = None


def find_images(paths: Sequence[Path], out: Path) -> list[Found]:
    """The images that paths stand for: files as they are, folders searched for images, sorted.

    Without any path, the bundled photographs. Where `out` is below a folder that is searched, what
    lies in it is left out.

    Raises:
        FileNotFoundError: a folder without images.
    """
    if not paths:
        bundled = [BundledPhotographs("train"), BundledPhotographs("val")]
        return [Found(file, file.name) for source in bundled for file in source.files]
    found = []
    for path in paths:
        if not path.is_dir():
            found.append(Found(path, path.name))
            continue
        files = sorted(
            file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()
        )
        below = path.resolve() in out.resolve().parents
        inside = [f for f in files if not (below and out.resolve() in f.resolve().parents)]
        if not inside:
            raise FileNotFoundError(
                f"{str(path)!r} must hold {', '.join(sorted(SUFFIXES))} files, it has none."
            )
        found += [Found(file, file.relative_to(path).as_posix()) for file in inside]
    return found


def jobs_of(
    found: Sequence[Found],
    tables: Sequence[DegradationParameters],
    tasks: Sequence[Sequence[str | None]],
    *,
    crop: int | None,
    compat: Compat | None,
) -> list[Job]:
    """A job per image and table: row `i` of each table is that of image `i`.

    Args:
        found: the images.
        tables: rows of parameters, one per image.
        tasks: for each table, the task of each row.
        crop: side of the central crop.
        compat: as `degrade` takes it.

    Raises:
        ValueError: two images would be written to one file.
    """
    stems = Counter(PurePosixPath(image.name).with_suffix("") for image in found)
    jobs = []
    for i, image in enumerate(found):
        stem = PurePosixPath(image.name).with_suffix("")
        base = str(stem) if stems[stem] == 1 else image.name
        for turn, (table, names) in enumerate(zip(tables, tasks, strict=True)):
            output = f"{base}.png" if len(tables) == 1 else f"{base}-{turn}.png"
            jobs.append(Job(image, output, crop, table[i], names[i], i, turn, compat))
    twice = next((name for name, n in Counter(job.output for job in jobs).items() if n > 1), None)
    if twice is not None:
        files = [str(job.found.file) for job in jobs if job.output == twice]
        raise ValueError(
            f"{' and '.join(files)} would all become {twice!r}; degrade them into two folders."
        )
    return jobs


def read_record(file: Path, found: Sequence[Found]) -> tuple[list[Job], dict[str, Any]]:
    """The jobs that a record describes, and what was asked for.

    Args:
        file: a record.
        found: where to look for the images, by name; empty for where they were.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no record.
    """
    try:
        record = json.loads(file.read_bytes())
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']!r} instead of {FORMAT}")
        request = record["request"]
        known = {image.name: image for image in found}
        jobs = [
            Job(
                known.get(done["image"], Found(Path(done["path"]), done["image"])),
                done["output"],
                request["crop"],
                replayed([done["parameters"]]),
                done["task"],
                done["id"],
                done["turn"],
                request["compat"],
                done["pixels"],
                done["source"],
            )
            for done in record["images"]
        ]
        outside = [job.output for job in jobs if not _is_inside(job.output)]
        if outside:
            raise ValueError(f"output {outside[0]!r} leaves the folder of results")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(file)!r} is no record of degraded files that can be read "
            f"({type(error).__name__}: {error})."
        ) from error
    return jobs, request


def _is_inside(output: str) -> bool:
    path = PurePosixPath(output)
    return not path.is_absolute() and ".." not in path.parts
