"""A validation set made again from its manifest, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtlweight_sr.data import Photographs
from mtlweight_sr.replay import cut, pixels_hash, replayed, surroundings
from mtlweight_sr.validation.files import new_folder, read_manifest, write_set
from mtlweight_sr.validation.sets import ValidationSet

__all__ = ["rebuild"]


def rebuild(manifest: Path | str, photographs: Photographs, out: Path | str) -> ValidationSet:
    """Makes a validation set again from what its manifest records, and checks every pixel.

    Photographs are found by their names; others may be among them. No task definition is read: the
    manifest holds every parameter. The folder appears complete or not at all. Its files have the
    same bytes where Pillow is of the same version, and the same pixels otherwise.

    Args:
        manifest: `manifest.json` of a set, or the folder it is in.
        photographs: those that the set was made from.
        out: the folder to make; it must not exist.

    Raises:
        FileNotFoundError: there is no manifest.
        FileExistsError: `out` exists.
        ValueError: the manifest cannot be read, photographs are missing or have other pixels, or
            the rebuilt LR images do; the message names them.
    """
    wanted = read_manifest(Path(manifest))
    request = wanted["request"]
    draws = {name: replayed([e["parameters"] for e in rows]) for name, rows in wanted["lr"].items()}
    places = _places(wanted, photographs)
    with new_folder(Path(out)) as folder:
        made = write_set(folder, photographs, places, request, draws)
        _check(wanted, made)
    return ValidationSet(Path(out), made)


def _places(wanted: dict[str, Any], photographs: Photographs) -> list[int]:
    """The indices of the photographs of a set, whose pixels must be those it was made from."""
    place = {name: i for i, name in enumerate(photographs.names)}
    crop, scale = wanted["request"]["crop"], wanted["request"]["scale"]
    names = [entry["name"] for entry in wanted["hr"]]
    changed = [
        entry["name"]
        for entry in wanted["hr"]
        if entry["name"] in place
        and pixels_hash(cut(photographs.image(place[entry["name"]]), crop, scale))
        != entry["pixels"]
    ]
    missing = [name for name in names if name not in place]
    problems = [
        f"{', '.join(some)} {'is' if len(some) == 1 else 'are'} {what}"
        for some, what in ((missing, "missing"), (changed, "changed"))
        if some
    ]
    if problems:
        raise ValueError(
            f"`photographs` must be those the set was made from: {'; '.join(problems)}. Give the "
            "original files, or build another set from these."
        )
    return [place[name] for name in names]


def _check(wanted: dict[str, Any], made: dict[str, Any]) -> None:
    pairs = [
        (old, new)
        for name, rows in wanted["lr"].items()
        for old, new in zip(rows, made["lr"][name], strict=True)
    ]
    differ = [old["file"] for old, new in pairs if old["pixels"] != new["pixels"]]
    if differ:
        then, now = wanted["versions"], surroundings()
        others = [f"{k} {then.get(k)} then, {now[k]} now" for k in now if then.get(k) != now[k]]
        raise ValueError(
            f"{len(differ)} of {len(pairs)} rebuilt LR images have other pixels than recorded, "
            f"{differ[0]} first; {'; '.join(others) or 'the versions are the same'}. Rebuild with "
            "what made the set, or build another one."
        )
