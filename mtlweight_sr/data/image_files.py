"""Image files of any kind as 8-bit RGB."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

__all__ = ["SUFFIXES", "decode", "size_of"]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
"""What image files are named by."""
_MODES = frozenset({"RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr"})


def size_of(file: Path) -> tuple[int, int]:
    """Height and width from the header, after the camera's orientation.

    Raises:
        ValueError: the file is not an image, or has more than 8 bits per channel.
    """
    with _open(file) as image:
        if image.mode not in _MODES:
            raise ValueError(
                f"{str(file)!r} must have 8 bits per channel, got mode {image.mode!r}; "
                "convert it before."
            )
        width, height = image.size
        return (width, height) if _orientation(image) in (5, 6, 7, 8) else (height, width)


def decode(file: Path) -> Tensor:
    """The pixels, upright, as uint8 `[3, H, W]`.

    Raises:
        ValueError: the file cannot be decoded.
    """
    with _open(file) as image:
        try:
            # In place: otherwise Pillow copies an image that is upright as it is.
            if _orientation(image) != 1:
                ImageOps.exif_transpose(image, in_place=True)
            image.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{str(file)!r} cannot be decoded: {error}.") from error
        rgb: Image.Image = image
        if rgb.mode == "P":
            # A palette may carry transparency, which Pillow converts by way of RGBA alone.
            rgb = rgb.convert("RGBA")
        if rgb.mode != "RGB":
            rgb = rgb.convert("RGB")
        return torch.from_numpy(np.asarray(rgb).transpose(2, 0, 1).copy())


def _orientation(image: Image.Image) -> int:
    """How the camera was held; 1, upright, where what it wrote about that can't be read."""
    # Not image.getexif(): for a PNG it decodes all pixels.
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        return int(exif.get(0x0112, 1))
    except (OSError, SyntaxError, TypeError, ValueError, struct.error):
        return 1


def _open(file: Path) -> Image.Image:
    try:
        return Image.open(file)
    except UnidentifiedImageError as error:
        raise ValueError(f"{str(file)!r} is not an image that can be read.") from error
