r"""A counter-based random generator: numbers are a pure function of (seed, stream, id, position).

Philox4x32-10: a counter of four 32-bit words is mixed with a key of two words in ten rounds of
multiplication. Any number can be made alone, which is what makes draws independent of batch layout,
workers and world size.

Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011), table of known answers
    included.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["as_ids", "philox", "uniforms", "words"]

_MASK = np.uint64(0xFFFFFFFF)
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_HALF = np.uint64(32)


def philox(counter: Sequence[NDArray[np.uint64]], key: tuple[int, int]) -> list[NDArray[np.uint64]]:
    """Ten rounds of Philox4x32 on arrays of counters.

    Args:
        counter: Four arrays of 32-bit words, of shapes that broadcast.
        key: Two 32-bit words.

    Returns:
        Four arrays of 32-bit words, held in uint64.
    """
    a, b, c, d = counter
    for turn in range(10):
        keys = [np.uint64((k + turn * w) & 0xFFFFFFFF) for k, w in zip(key, _WEYL, strict=True)]
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (
            (second >> _HALF) ^ b ^ keys[0],
            second & _MASK,
            (first >> _HALF) ^ d ^ keys[1],
            first & _MASK,
        )
    return [a, b, c, d]


def as_ids(ids: Sequence[int] | Tensor | NDArray[np.int64]) -> NDArray[np.int64]:
    """Sample ids as a checked array `[B]`.

    Raises:
        TypeError: Ids that are not integers.
        ValueError: Negative ids, or more than one dimension.
    """
    array = ids.cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"expected `ids` of whole numbers, got {array.dtype}; write for example "
            "torch.arange(16)"
        )
    if array.ndim != 1 or (array.size and array.min() < 0):
        shown = array.shape if array.ndim != 1 else int(array.min())
        raise ValueError(
            f"expected `ids` of shape [B] with values >= 0, got {shown}; write for example "
            "range(16)"
        )
    return array.astype(np.int64)


def words(
    ids: NDArray[np.int64], seed: int, stream: int, count: int, start: int = 0
) -> NDArray[np.uint64]:
    """`count` 64-bit words per id, `[B, count]`, from word `start` (even) of its sequence.

    Raises:
        TypeError: `seed` or `stream` is no int.
        ValueError: `seed` outside [0, 2**64) or `stream` outside [0, 2**32).
    """
    for name, value, bits in (("seed", seed, 64), ("stream", stream, 32)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"expected `{name}` as an int, got {value!r}; write {name}=0")
        if not 0 <= value < 2**bits:
            raise ValueError(
                f"expected `{name}` in [0, 2**{bits}), got {value}; write {value % 2**bits}"
            )
    blocks = np.arange(start // 2, (start + count + 1) // 2, dtype=np.uint64)[None, :]
    wide = ids.astype(np.uint64)[:, None]
    counter = [blocks, wide & _MASK, wide >> _HALF, np.uint64(stream) * np.ones((1, 1), np.uint64)]
    a, b, c, d = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    pairs = np.stack([(a << _HALF) | b, (c << _HALF) | d], axis=-1)
    return pairs.reshape(len(ids), 2 * blocks.size)[:, :count]


def uniforms(bits: NDArray[np.uint64]) -> Tensor:
    """64-bit words as multiples of 2**-53 in [0, 1), float64."""
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)
