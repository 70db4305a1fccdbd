"""BasicSR's own functions, loaded from the installed package.

Importing the package itself fails on current torchvision and needs much that the degradation does
not: the three files that hold it are loaded by themselves, with the one function that torchvision
has moved put where they look for it.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import types
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np

COMMAND = "uv pip install --no-deps basicsr"
_MOVED = "torchvision.transforms.functional_tensor"


@dataclass(frozen=True)
class BasicSR:
    """The files of the package that the degradation is in.

    Attributes:
        version: Of the package.
        degradations: Kernels and noise.
        diffjpeg: The codec.
        filters: `filter2D` and `USMSharp`.
    """

    version: str
    degradations: ModuleType
    diffjpeg: ModuleType
    filters: ModuleType


def why_not() -> str | None:
    """Returns why BasicSR's functions can't be had, None if they can."""
    if importlib.util.find_spec("basicsr") is None:
        return f"BasicSR is not installed; write {COMMAND}"
    return None


@functools.cache
def basicsr() -> BasicSR:
    """Returns BasicSR's functions.

    Raises:
        ImportError: It is not installed.
    """
    spec = importlib.util.find_spec("basicsr")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(why_not())
    folder = Path(spec.submodule_search_locations[0])
    with np.errstate():  # importing it silences NumPy for everybody
        return BasicSR(
            version("basicsr"),
            _load(folder / "data" / "degradations.py"),
            _load(folder / "utils" / "diffjpeg.py"),
            _load(folder / "utils" / "img_process_util.py"),
        )


def _load(path: Path) -> ModuleType:
    from torchvision.transforms.functional import rgb_to_grayscale

    spec = importlib.util.spec_from_file_location(f"basicsr_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    old = types.ModuleType(_MOVED)
    old.rgb_to_grayscale = rgb_to_grayscale  # type: ignore[attr-defined]
    before = sys.modules.get(_MOVED)
    sys.modules[_MOVED] = before or old
    try:
        spec.loader.exec_module(module)
    finally:
        if before is None:
            del sys.modules[_MOVED]
    return module
