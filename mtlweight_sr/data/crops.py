"""Where a crop lies in its photograph and how it is turned; many crops cut at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Place", "PlaceDraws", "cut"]

# Second word of the key of the crops' generator: apart from whatever else uses the same seed.
_CROP_STREAM = 0x63726F70


class Place(NamedTuple):
    """A square window of an image, and how it is turned: first flipped, then rotated."""

    top: int
    """Row of its upper edge."""
    left: int
    """Column of its left edge."""
    flip: int
    """1 where left and right are exchanged, else 0."""
    turns: int
    """Rotations by 90 degrees to the left, 0 to 3."""

    def walk(self, side: int, width: int) -> tuple[int, int, int]:
        """How to walk through the pixels of an image so that they come as those of the crop.

        Args:
            side: side of the crop.
            width: width of the image.

        Returns:
            Where the crop's upper left pixel lies among the image's pixels in reading order, and
            how far it is from there to the pixel below and to the pixel on the right.
        """
        # The crop's pixel (i, j) is pixel (row, column) = origin + i * down + j * right upright.
        last = side - 1
        origin, down, right = (
            ((0, 0), (1, 0), (0, 1)),
            ((0, last), (0, -1), (1, 0)),
            ((last, last), (-1, 0), (0, -1)),
            ((last, 0), (0, 1), (-1, 0)),
        )[self.turns]
        row, column, sign = self.top + origin[0], origin[1], 1
        if self.flip:
            column, sign = last - column, -1
        return (
            row * width + self.left + column,
            down[0] * width + sign * down[1],
            right[0] * width + sign * right[1],
        )


class PlaceDraws:
    """Draws places, each a pure function of a seed and of sizes.

    Every position that fits is equally likely, a flip has probability 1/2, and each of the four
    rotations 1/4.
    """

    def __init__(self) -> None:
        # One generator for all draws, put back to the start of each seed's own sequence: making a
        # generator costs more than twice as much as drawing.
        self._generator = np.random.Generator(np.random.Philox(key=0))
        self._start = self._generator.bit_generator.state

    def __call__(self, seed: int, height: int, width: int, side: int) -> Place:
        """The place of a crop of `side` in an image of `height` x `width`, which holds it."""
        self._start["state"]["key"][:] = seed, _CROP_STREAM
        self._generator.bit_generator.state = self._start
        bounds = [height - side + 1, width - side + 1, 2, 4]
        return Place(*self._generator.integers(bounds).tolist())


def cut(pixels: Tensor, walks: Tensor, side: int) -> Tensor:
    """Cut and turn crops, all of them in one pass; an accelerator isn't waited for.

    Args:
        pixels: uint8 `[P, 3]` on any device: the pixels of any number of images, each in reading
            order.
        walks: int64 `[B, 3]` on the host, a row per crop: its upper left pixel, and the steps down
            and to the right, as `Place.walk` gives them.
        side: side of the crops.

    Returns:
        uint8 `[B, 3, side, side]`, contiguous, on the device of `pixels`.

    Raises:
        ValueError: a crop reaches beyond the pixels.
    """
    table = walks.numpy()
    corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) * (side - 1)
    ends = table[:, :1] + table[:, 1:] @ corners.T
    if len(table) and not (ends.min() >= 0 and ends.max() < len(pixels)):
        raise ValueError(
            f"Crops must lie in the {len(pixels)} pixels, got places from {ends.min()} to "
            f"{ends.max()}; make them with `Place.walk` from the size of the image."
        )
    if pixels.is_cpu:
        return _copied(pixels, table, side)
    steps = torch.arange(side, device=pixels.device)
    if pixels.device.type != "cpu":
        walks = walks.pin_memory().to(pixels.device, non_blocking=True)
    first, down, right = walks[:, :, None, None].unbind(1)
    places = first + down * steps[:, None] + right * steps
    rows = pixels.index_select(0, places.flatten())
    return rows.view(-1, side, side, 3).permute(0, 3, 1, 2).contiguous()


def _copied(pixels: Tensor, walks: NDArray[np.int64], side: int) -> Tensor:
    """The crops, each by one copy, which on the host is faster than an index for every pixel."""
    crops = torch.empty(len(walks), 3, side, side, dtype=torch.uint8)
    memory = pixels.numpy()
    for crop, (first, down, right) in zip(crops.numpy(), walks.tolist(), strict=True):
        strides = (1, 3 * down, 3 * right)
        crop[...] = np.ndarray(crop.shape, np.uint8, memory, 3 * first, strides)
    return crops
