"""Gaussian and Poisson noise with per-sample strength, all of it from standard normal fields.

One field serves every kind of noise, and a sample's noise is a pure function of its field.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mtlweight_sr.degradation.columns import NOISE_TYPES
from mtlweight_sr.degradation.poisson import Levels, Sizes, poisson_row, poisson_rows
from mtlweight_sr.degradation.precision import sent, sent_together

__all__ = ["add_noise", "gaussian_noise", "normal_fields", "poisson_noise"]


def _seed(key: int, stage: int) -> int:
    # One generator per stage: what the first stage draws never shifts the second. CPU generators
    # read the low 32 bits alone, hence both halves of the key are folded into them.
    folded = (key ^ key >> 32 ^ stage * 0x9E3779B9) & 0xFFFFFFFF
    return folded | ((key >> 32 << 32) & 0xFFFFFFFFFFFFFFFF)


def normal_fields(
    keys: Sequence[int],
    stage: int,
    shape: tuple[int, int],
    sizes: Sizes = None,
    *,
    gray: Sequence[bool],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal fields, a pure function of the arguments.

    On a CPU a row's field depends on its own key, the stage, its own size and whether it is gray
    alone, so it has the same bits alone and in any batch. On other devices one generator, seeded by
    all keys, fills the batch at once.

    Args:
        keys: Each row's key, an int in [0, 2**63).
        stage: Number of the noise step; the steps of a row are independent.
        shape: Height and width of the fields.
        sizes: Height and width of each row's part of it; None where rows fill it.
        gray: Rows that need one channel only.
        device: Where the fields are drawn.

    Returns:
        `[B, 3, H, W]` float32, or `[B, 1, H, W]` where all rows are gray. In a gray row among
        others the first channel counts, and outside a row's size nothing does.
    """
    device = torch.device(device)
    channels = 1 if all(gray) else 3
    if device.type != "cpu":
        text = np.array([stage, *keys], np.int64).tobytes()
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
        generator = torch.Generator(device).manual_seed(seed)
        return torch.randn(
            len(keys), channels, *shape, dtype=torch.float32, device=device, generator=generator
        )
    generator = torch.Generator()
    whole = sizes is None or all(tuple(size) == tuple(shape) for size in sizes)
    if len(keys) == 1 and whole:
        generator.manual_seed(_seed(keys[0], stage))
        return torch.randn(1, channels, *shape, dtype=torch.float32, generator=generator)
    fields = torch.zeros(len(keys), channels, *shape, dtype=torch.float32)
    for i, key in enumerate(keys):
        height, width = shape if sizes is None else sizes[i]
        own = 1 if gray[i] else 3
        generator.manual_seed(_seed(key, stage))
        fields[i, :own, :height, :width] = torch.randn(
            own, height, width, dtype=torch.float32, generator=generator
        )
    return fields


def _check_levels(levels: Levels) -> None:
    if levels not in ("auto", 256):
        raise ValueError(f"expected `levels` 'auto' or 256, got {levels!r}; write levels='auto'")


def _noisy_row(
    image: Tensor, kind: str, strength: float, gray: bool, z: Tensor, levels: Levels
) -> Tensor:
    if kind == "none":
        return image.clamp(0, 1)
    if kind == "gaussian":
        return torch.add(image, z[:, :1] if gray else z, alpha=strength / 255).clamp_(0, 1)
    noise, grains = poisson_row(image, z, gray, levels)
    # Memory that lies in the cache already costs half of what new memory does.
    out = None if gray else noise
    return torch.add(image, noise, alpha=strength / grains, out=out).clamp_(0, 1)


def add_noise(
    images: Tensor,
    noise_type: Tensor,
    strength: Tensor,
    gray: Tensor,
    normals: Tensor,
    sizes: Sizes = None,
    *,
    levels: Levels = "auto",
) -> Tensor:
    """The images with noise, each of its own type and strength, cut off at 0 and 1.

    A pure function: all randomness is in `normals`. On a CPU a row has the same bits alone and in
    any batch.

    Args:
        images: `[B, 3, H, W]` float32, the content of a row in its upper left corner.
        noise_type: Places in `NOISE_TYPES`, `[B]` on the CPU.
        strength: Gaussian: standard deviation in 1/255. Poisson: multiplier. `[B]` on the CPU.
        gray: Rows whose channels share their noise, bool `[B]` on the CPU.
        normals: Standard normal fields `[B, 3, H, W]`, as from `normal_fields`; gray rows read the
            first channel, rows without noise none. `[B, 1, H, W]` where all rows are gray.
        sizes: Height and width of each row's content; None where every row fills `images`. Outside
            a row's size the result means nothing.
        levels: As in `poisson_noise`.

    Raises:
        ValueError: Another value of `levels`; one channel of `normals` where a row is not gray.
    """
    _check_levels(levels)
    kinds = [NOISE_TYPES[kind] for kind in noise_type.numpy()]
    shared = gray.numpy()
    if normals.shape[1] == 1 and not shared.all():
        raise ValueError(
            f"expected `normals` with 3 channels, one for each colour, got {list(normals.shape)}; "
            "draw them with the `gray` flags of the rows"
        )
    batch, _, height, width = images.shape
    if images.is_cpu:
        whole = sizes is None or all(tuple(size) == (height, width) for size in sizes)
        parts = []
        for i, kind in enumerate(kinds):
            h, w = (height, width) if sizes is None else sizes[i]
            image, z = images[i : i + 1, :, :h, :w], normals[i : i + 1, :, :h, :w]
            parts.append(_noisy_row(image, kind, float(strength[i]), bool(shared[i]), z, levels))
        if whole:
            return torch.cat(parts) if batch != 1 else parts[0]
        result = torch.zeros_like(images)
        for i, part in enumerate(parts):
            result[i : i + 1, :, : part.shape[2], : part.shape[3]] = part
        return result
    return _together(images, kinds, strength, gray, normals, levels, sizes)


def _together(
    images: Tensor,
    kinds: Sequence[str],
    strength: Tensor,
    gray: Tensor,
    normals: Tensor,
    levels: Levels,
    sizes: Sizes,
) -> Tensor:
    """All rows at once: nothing here waits for the device."""
    batch = len(images)
    amounts = np.where([kind == "gaussian" for kind in kinds], strength.numpy() / 255, 0)
    poisson = [i for i, kind in enumerate(kinds) if kind == "poisson"]
    place = torch.tensor(poisson, dtype=torch.long)
    amount, rows, one = sent_together(
        [torch.from_numpy(amounts.astype(np.float32)), place, gray], images.device
    )
    z = normals
    if normals.shape[1] > 1 and gray.numpy().any():
        z = torch.where(one.view(batch, 1, 1, 1), normals[:, :1], normals)
    del normals
    result = torch.addcmul(images, z, amount.view(batch, 1, 1, 1))
    if poisson:
        some = None if sizes is None else [sizes[i] for i in poisson]
        whole = len(poisson) == batch
        if not whole:
            z = z.index_select(0, rows)
        noise = poisson_rows(
            images if whole else images.index_select(0, rows),
            z,
            strength[place],
            gray[place],
            levels,
            some,
        )
        result = result.add_(noise) if whole else result.index_add_(0, rows, noise)
    return result.clamp_(0, 1)


def _per_sample(values: Tensor, images: Tensor) -> Tensor:
    return values.to(device=images.device, dtype=images.dtype).view(-1, 1, 1, 1)


def gaussian_noise(
    images: Tensor, sigma: Tensor, gray: Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    """A field of Gaussian noise, to be added to the images.

    Args:
        images: `[B, C, H, W]`; only its shape, dtype and device matter.
        sigma: Standard deviation of each sample in 1/255, `[B]`.
        gray: Whether the channels of a sample share one field, bool `[B]`. Samples never share a
            field.
        generator: Where the numbers come from.
    """
    field = torch.randn(images.shape, dtype=images.dtype, device=images.device, generator=generator)
    shared = gray.to(images.device).view(-1, 1, 1, 1)
    return torch.where(shared, field[:, :1], field) * (_per_sample(sigma, images) / 255)


def poisson_noise(
    images: Tensor,
    scale: Tensor,
    gray: Tensor,
    *,
    levels: Levels = "auto",
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""A field of Poisson noise, to be added to the images.

    With $v$ the image rounded to 8-bit levels and $n$ the number of grains per unit: scale times
    $P/n-v$, $P$ Poisson with mean $n v$; the variance is $\text{scale}^2\,v/n$.

    Args:
        images: `[B, 3, H, W]` float32, values outside [0, 1] count as the nearest of the two.
        scale: Multiplier of each sample, `[B]` on the CPU.
        gray: Whether the noise of a sample is that of its luma, the same in every channel, bool
            `[B]` on the CPU.
        levels: "auto": n is the smallest power of two that reaches the number of distinct levels in
            the sample, so that flat images get far more noise (Real-ESRGAN's law). 256: n is 256
            for every image.
        generator: Where the numbers come from.

    Raises:
        ValueError: Another value of `levels`.
    """
    _check_levels(levels)
    z = torch.randn(images.shape, dtype=images.dtype, device=images.device, generator=generator)
    if not images.is_cpu:
        shared = sent(gray, images.device).view(-1, 1, 1, 1)
        z = torch.where(shared, z[:, :1], z)
        return poisson_rows(images, z, scale, gray, levels, None)
    field = torch.empty_like(images)
    for i, (strength, shared) in enumerate(zip(scale.tolist(), gray.tolist(), strict=True)):
        noise, grains = poisson_row(images[i : i + 1], z[i : i + 1], shared, levels)
        field[i] = noise[0] * (strength / grains)
    return field
