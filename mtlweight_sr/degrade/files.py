"""Image files degraded one by one, with a record from which each is made again bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from mtlweight_sr.data import Photographs
from mtlweight_sr.degrade.jobs import FORMAT, Job
from mtlweight_sr.replay import cut, degraded, encode_png, pixels_hash, recorded, surroundings
from mtlweight_sr.training_files import write_atomically, write_json

__all__ = ["RECORD", "Outcome", "degrade_files"]

RECORD = "parameters.json"
"""Name of the record in the folder of degraded files."""


@dataclass
class Outcome:
    """What became of the jobs.

    Attributes:
        done: records of the images written.
        skipped: what could not be degraded, and why.
    """

    done: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def degrade_files(
    jobs: Sequence[Job],
    out: Path,
    request: dict[str, Any],
    *,
    force: bool,
    skip: Callable[[str, str], None],
    step: Callable[[], None],
) -> Outcome:
    """Degrades every image that can be read, and writes the record, also where it is interrupted.

    Args:
        jobs: what to make.
        out: the folder of results, made where it does not exist.
        request: what was asked for, for the record.
        force: whether files in `out` may be replaced; a file to be degraded never is.
        skip: told the name of each file that cannot be degraded, and why.
        step: called after each job.

    Raises:
        FileExistsError: files in `out` would be replaced.
    """
    _check_outputs(jobs, out, force)
    outcome = Outcome()
    source: tuple[Tensor, str] | None = None
    try:
        for i, job in enumerate(jobs):
            if i == 0 or job.found != jobs[i - 1].found:
                source = _read(job, outcome, skip)
            if source is not None:
                _degrade(job, *source, out, outcome, skip)
            step()
    finally:
        if outcome.done:
            content = {"format": FORMAT, "versions": surroundings(), "request": request}
            write_json(out / RECORD, content | {"images": outcome.done})
    return outcome


def _check_outputs(jobs: Sequence[Job], out: Path, force: bool) -> None:
    targets = [out / RECORD, *(out / job.output for job in jobs)]
    existing = [target for target in targets if target.exists()]
    sources = {job.found.file.resolve() for job in jobs}
    own = [target for target in existing if target.resolve() in sources]
    if own:
        raise FileExistsError(
            f"{str(own[0])!r} is one of the images to degrade and would be replaced; give another "
            "--out."
        )
    if existing and not force:
        more = f" and {len(existing) - 1} more files" if len(existing) > 1 else ""
        raise FileExistsError(
            f"{str(existing[0])!r}{more} would be replaced; give another --out, or --force."
        )


def _read(
    job: Job, outcome: Outcome, skip: Callable[[str, str], None]
) -> tuple[Tensor, str] | None:
    """The image of a job, cut, and the hash of its file; None where it cannot be degraded."""
    found, scale = job.found, job.row.scale
    try:
        if not found.file.is_file():
            raise ValueError("there is no such file")
        image = Photographs([found.file], [found.name]).image(0)
        smallest = scale if job.crop is None else job.crop
        if min(image.shape[1:]) < smallest:
            raise ValueError(
                f"it has {image.shape[1]} x {image.shape[2]} pixels, fewer than {smallest} a side"
            )
        source = hashlib.sha256(found.file.read_bytes()).hexdigest()
    except (ValueError, OSError, Image.DecompressionBombError) as error:
        why = str(error).removeprefix(f"{str(found.file)!r} ")
        outcome.skipped[str(found.file)] = why
        skip(str(found.file), why)
        return None
    return cut(image, job.crop, scale), source


def _degrade(
    job: Job,
    image: Tensor,
    source: str,
    out: Path,
    outcome: Outcome,
    skip: Callable[[str, str], None],
) -> None:
    lr = degraded(image, job.row, compat=job.compat)
    pixels = pixels_hash(lr)
    if job.expected not in (None, pixels):
        why = (
            "the file has changed since it was recorded"
            if source != job.source
            else "these versions give other pixels than the record's; see `versions` in it"
        )
        outcome.skipped[job.output] = why
        skip(f"{job.found.file} to {job.output}", why)
        return
    write_atomically(out / job.output, encode_png(lr))
    outcome.done.append(
        {
            "image": job.found.name,
            "path": str(job.found.file.resolve()),
            "source": source,
            "output": job.output,
            "pixels": pixels,
            "task": job.task,
            "id": job.id,
            "turn": job.turn,
            "words": job.row.describe(0),
            "parameters": recorded(job.row)[0],
        }
    )
