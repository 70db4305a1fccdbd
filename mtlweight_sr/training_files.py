"""The files of a training run: written whole or not at all, and read without running code."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import torch

__all__ = ["JsonLines", "load_checkpoint", "save_checkpoint", "write_atomically", "write_json"]


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file by new content: after a crash there is either the old or the new one.

    Args:
        path: the file; its folder is made where it does not exist. One process writes it.
        content: what it shall hold.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # One name per file: what a crash leaves behind is overwritten by the next write.
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(unfinished, path)


def write_json(path: Path, content: Any) -> None:
    """Replaces a file by JSON, indented, with floats that read back to the same bits."""
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes tensors and plain containers to a file, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads what `save_checkpoint` wrote, onto the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {str(path)!r}.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{str(path)!r} is not a checkpoint that can be read ({type(error).__name__}); delete "
            "it to start anew."
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{str(path)!r} holds {type(state).__name__}, not a checkpoint.")
    return state


class JsonLines:
    """A log with one JSON object per line, which can be taken back to an earlier position.

    Args:
        path: the file, made where it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    @property
    def position(self) -> int:
        """The length of the log in bytes."""
        return self.path.stat().st_size

    def append(self, record: dict[str, Any]) -> None:
        """Adds a line."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")

    def truncate(self, position: int) -> None:
        """Drops what was written after a position.

        Raises:
            ValueError: the log is shorter than that.
        """
        if self.position < position:
            raise ValueError(
                f"{str(self.path)!r} has {self.position} bytes, its checkpoint knows of {position}:"
                " it was changed since. Delete the folder to start the run anew."
            )
        with self.path.open("r+b") as stream:
            stream.truncate(position)
