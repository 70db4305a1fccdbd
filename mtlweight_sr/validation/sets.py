"""Fixed validation sets: one degraded copy of each photograph per task, kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtlweight_sr.data import Photographs
from mtlweight_sr.degradation import draw_seeds
from mtlweight_sr.degradation.parameters import DegradationParameters
from mtlweight_sr.degradation.pipeline import Compat
from mtlweight_sr.tasks.draws import TaskDraws
from mtlweight_sr.validation.files import (
    check_files,
    new_folder,
    read_image,
    read_manifest,
    write_set,
)

NATURAL = "natural"
"""Name of the further set whose degradations are drawn from the whole space."""
_TASK_STREAM, _NATURAL_STREAM, _NOISE_STREAM = 0, 1, 2**16


class ValidationSet:
    """Pairs of LR and HR images for each task, read from a folder that never changes.

    The folder holds 8-bit PNG files and `manifest.json`: what was asked for (seed, scale, crop,
    task definitions, hash of the photographs), the versions that made it, the parameters of each LR
    image in words and in numbers (exact, with the row of the unit cube and the noise seed), and the
    SHA-256 of each file and of its pixels. The manifest and the photographs are enough to make the
    set again, bit for bit (`mtlweight_sr.validation.rebuild`).

    Image `i` is drawn with id `i` in every task. Where tasks are boxes, that is the same row of the
    cube, mapped into each task's part: differences between tasks are paired, hence far less noisy
    than with independent draws. Noise fields are a function of seed, image and task.

    Attributes:
        path: the folder.
        tasks: names of the tasks, `"natural"` last where it was asked for.
        images: names of the photographs.
        scale: HR size over LR size.
        request: what was asked for, as the manifest has it.

    Source:
        Sets per degradation level as in DIV2K4Level (Zhang et al., 2023, TGSR); the pairing is
        ours.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.request: dict[str, Any] = manifest["request"]
        self.scale: int = self.request["scale"]
        self.images: tuple[str, ...] = tuple(image["name"] for image in manifest["hr"])
        self._hr: list[dict[str, Any]] = manifest["hr"]
        self._lr: dict[str, list[dict[str, Any]]] = manifest["lr"]
        self.tasks: tuple[str, ...] = tuple(self._lr)

    def __len__(self) -> int:
        """Number of photographs, that is of pairs per task."""
        return len(self.images)

    @classmethod
    def build(
        cls,
        source: Photographs,
        task_space: TaskDraws,
        *,
        seed: int,
        crop: int | None,
        out: Path | str,
        images: int | None = None,
        natural: bool = False,
        compat: Compat | None = None,
    ) -> ValidationSet:
        """Degrade the photographs and write the set; the folder appears complete or not at all.

        Args:
            source: the photographs.
            task_space: the tasks.
            seed: seed of the parameters and noise, in [0, 2**64).
            crop: side of the central crop in pixels, a multiple of the scale; None keeps whole
                images, cut at the right and bottom to multiples of the scale.
            out: the folder to make; it must not exist.
            images: how many photographs to take, from the first; None takes all.
            natural: also make a set with independent draws from the whole space, by its natural
                probabilities.
            compat: as `degrade` takes it.

        Raises:
            FileExistsError: `out` exists.
            ValueError: `crop` or `images` does not fit the photographs.
        """
        out = Path(out)
        count = _checked_count(source, task_space, crop, images)
        draws = _draw(task_space, count, seed, natural)
        request = _request(source, task_space, seed, crop, count, draws, compat)
        with new_folder(out) as folder:
            manifest = write_set(folder, source, range(count), request, draws)
        return cls(out, manifest)

    @classmethod
    def load(cls, path: Path | str) -> ValidationSet:
        """Read a set, after checking every file against the hash in the manifest.

        Args:
            path: its folder.

        Raises:
            FileNotFoundError: there is no manifest.
            ValueError: the manifest cannot be read, or files are missing or changed; the message
                names the first.
        """
        manifest = read_manifest(Path(path))
        check_files(Path(path), manifest)
        return cls(Path(path), manifest)

    @classmethod
    def load_or_build(
        cls,
        source: Photographs,
        task_space: TaskDraws,
        *,
        seed: int,
        crop: int | None,
        root: Path | str,
        images: int | None = None,
        natural: bool = False,
        compat: Compat | None = None,
    ) -> ValidationSet:
        """The set in `root` that was made for exactly this request, made first if need be.

        The folder's name is a hash of the request: another seed, crop, definition of a task or
        set of photographs has another folder, and nothing is ever replaced. Several processes
        may call at once. Arguments are those of `build`.

        Raises:
            ValueError: as `load` and `build`, or the folder was made for another request.
        """
        count = _checked_count(source, task_space, crop, images)
        draws = _draw(task_space, count, seed, natural)
        request = _request(source, task_space, seed, crop, count, draws, compat)
        canonical = json.dumps(request, sort_keys=True).encode()
        path = Path(root) / hashlib.sha256(canonical).hexdigest()[:16]
        if not path.exists():
            try:
                return cls.build(
                    source,
                    task_space,
                    seed=seed,
                    crop=crop,
                    out=path,
                    images=images,
                    natural=natural,
                    compat=compat,
                )
            except FileExistsError:
                pass  # Another process was faster: its set is the same.
        found = cls.load(path)
        if found.request != request:
            differ = sorted(k for k in request if request[k] != found.request.get(k))
            raise ValueError(
                f"{str(path)!r} was made for another request, which differs in "
                f"{', '.join(differ)}; delete it or give another `root`."
            )
        return found

    def iterate(self, task: str) -> Iterator[tuple[Tensor, Tensor]]:
        """The pairs of a task one by one: `[1, 3, h, w]` and `[1, 3, H, W]`, float32 in [0, 1].

        Raises:
            ValueError: the set has no such task.
        """
        if task not in self._lr:
            raise ValueError(f"`task` must be one of {', '.join(self.tasks)}, got {task!r}.")
        return (
            (read_image(self.path / lr["file"]), read_image(self.path / hr["file"]))
            for lr, hr in zip(self._lr[task], self._hr, strict=True)
        )

    def pairs(self, task: str) -> tuple[Tensor, Tensor]:
        """All pairs of a task: `[N, 3, h, w]` and `[N, 3, H, W]`, float32 in [0, 1].

        Raises:
            ValueError: the set has no such task, or its images differ in size.
        """
        lr, hr = zip(*self.iterate(task), strict=True)
        if len({image.shape for image in hr}) > 1:
            raise ValueError(
                "`pairs` needs images of one size, and those of this set differ; use "
                "`iterate(task)`, or build the set with a `crop`."
            )
        return torch.cat(lr), torch.cat(hr)


def _checked_count(
    source: Photographs,
    task_space: TaskDraws,
    crop: int | None,
    images: int | None,
) -> int:
    count = len(source) if images is None else images
    if not 1 <= count <= len(source):
        raise ValueError(f"`images` must be in [1, {len(source)}], got {images}.")
    scale = task_space.space.scale
    smallest = min(min(size) for size in source.sizes[:count])
    if crop is not None and (crop % scale or not scale <= crop <= smallest):
        raise ValueError(
            f"`crop` must be a multiple of the scale {scale} of at most {smallest}, the smallest "
            f"side of the photographs, got {crop}."
        )
    return count


def _draw(
    task_space: TaskDraws, count: int, seed: int, natural: bool
) -> dict[str, DegradationParameters]:
    """One row per photograph for each task: the same ids everywhere, other noise in each task."""
    if NATURAL in task_space.names:
        raise ValueError(f"A task must not be named {NATURAL!r}: the name means no condition.")
    ids = torch.arange(count)
    draws = {}
    for task, name in enumerate(task_space.names):
        rows = task_space.draw(name, ids, seed, stream=_TASK_STREAM)
        draws[name] = replace(rows, seed=draw_seeds(ids, seed, stream=_NOISE_STREAM + task))
    if natural:
        draws[NATURAL] = task_space.draw_natural(ids, seed, stream=_NATURAL_STREAM)
    return draws


def _request(
    source: Photographs,
    task_space: TaskDraws,
    seed: int,
    crop: int | None,
    count: int,
    draws: dict[str, DegradationParameters],
    compat: Compat | None,
) -> dict[str, Any]:
    # Definitions in words may round: the hash of the rows themselves tells any two spaces apart.
    rows = hashlib.sha256()
    for parameters in draws.values():
        rows.update(parameters.cube.numpy().tobytes() + parameters.seed.numpy().tobytes())
    request = {
        "seed": seed,
        "scale": task_space.space.scale,
        "crop": crop,
        "compat": compat,
        "images": count,
        "photographs": source.content_hash(),
        "tasks": list(draws),
        "definitions": task_space.describe(),
        "space": task_space.space.model_dump(mode="json"),
        "rows": rows.hexdigest(),
    }
    # As a reader of the manifest will see it: lists for tuples, strings for keys.
    return dict(json.loads(json.dumps(request)))
