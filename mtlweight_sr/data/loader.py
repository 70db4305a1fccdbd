"""From photographs to batches of crops on the training device, at the pace of training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any, Literal, NamedTuple, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mtlweight_sr.data.crops import Place, cut
from mtlweight_sr.data.image_files import decode
from mtlweight_sr.data.photographs import CropDataset, Photographs
from mtlweight_sr.surroundings import ignore_interrupts

__all__ = ["CACHE_BYTES", "Cache", "CropBatch", "CropLoader", "PixelCache"]

Cache = Literal["none", "host", "device"]
"""Where decoded photographs are kept."""
CACHE_BYTES = 4_000_000_000
"""What they may take, by default."""


class PixelCache:
    """All photographs of a source, each decoded once, in one tensor.

    Args:
        source: the photographs.
        device: where their pixels are kept.

    Attributes:
        pixels: uint8 `[P, 3]`, image after image, each in reading order.
        firsts: where in `pixels` each image starts.

    Raises:
        ValueError: a photograph cannot be decoded.
    """

    def __init__(self, source: Photographs, device: torch.device) -> None:
        self.sizes = source.sizes
        ends = list(accumulate(height * width for height, width in self.sizes))
        self.firsts = (0, *ends[:-1])
        self.pixels = torch.empty(ends[-1], 3, dtype=torch.uint8, device=device)

        def fill(index: int) -> None:
            rows = decode(source.files[index]).flatten(1).T
            self.pixels[self.firsts[index] : ends[index]].copy_(rows)

        with ThreadPoolExecutor() as threads:
            list(threads.map(fill, range(len(source))))

    @staticmethod
    def shared(source: Photographs, device: torch.device, limit: int = CACHE_BYTES) -> PixelCache:
        """The one cache of these photographs on a device, made when it is first asked for.

        It is there as long as the photographs are: the runs of a comparison decode them once.

        Args:
            source: the photographs.
            device: where their pixels are kept.
            limit: bytes that they may take; more is refused before anything is decoded.

        Raises:
            ValueError: they take more than `limit`, or one cannot be decoded.
        """
        if source.decoded_bytes > limit:
            raise ValueError(
                f"The {len(source)} photographs take {source.decoded_bytes / 1e9:.3g} GB decoded, "
                f"and `cache_bytes` allows {limit / 1e9:.3g} GB on {str(device)!r}; raise it if "
                "there is room, or write cache='none' with some `workers`."
            )
        caches = _CACHES.setdefault(source, {})
        if device not in caches:
            caches[device] = PixelCache(source, device)
        return caches[device]

    def image(self, index: int) -> Tensor:
        """Image `index` as uint8 `[3, H, W]`, a view."""
        height, width = self.sizes[index]
        first = self.firsts[index]
        return self.pixels[first : first + height * width].view(height, width, 3).permute(2, 0, 1)


_CACHES: WeakKeyDictionary[Photographs, dict[torch.device, PixelCache]] = WeakKeyDictionary()


class CropBatch(NamedTuple):
    """A batch of crops."""

    images: Tensor
    """uint8 `[B, 3, crop, crop]` on the training device."""
    tasks: Tensor
    """Index of the task whose degradation each gets; int64 `[B]` on the host."""
    seeds: Tensor
    """Seed of everything random about each; int64 `[B]` on the host."""


class CropLoader:
    """Batches of crops on the training device, in the order of a batch sampler.

    The crops are those of the dataset, to the bit, however they come:

    - `cache="none"`: workers decode a photograph for every crop and cut its window out; with
      `workers=0` the training process does so itself, and trains nothing meanwhile.
    - `cache="host"`: the same, from photographs that were decoded once. Workers that are forked
      share them with the training process.
    - `cache="device"`: the decoded photographs are on the training device, where all crops of a
      batch are cut at once; no workers are started.

    Windows travel as 8-bit pixels, from pinned memory to an accelerator, and are turned there. The
    host never waits for it.

    Args:
        dataset: the crops.
        batch_sampler: yields lists of keys.
        device: the training device.
        workers: processes that load windows.
        cache: where decoded photographs are kept. They are decoded when the loader is made, by
            threads, and shared by all loaders of the same photographs.
        cache_bytes: the most that they may take.

    Attributes:
        dataset: the crops.
        cached_bytes: what the decoded photographs take, 0 without a cache.

    Raises:
        ValueError: `cache` is unknown, or the photographs don't fit.
    """

    def __init__(
        self,
        dataset: CropDataset,
        batch_sampler: Iterable[list[Any]],
        *,
        device: torch.device,
        workers: int = 0,
        cache: Cache = "none",
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        if cache not in get_args(Cache):
            raise ValueError(f"`cache` must be one of {', '.join(get_args(Cache))}, got {cache!r}.")
        self.dataset = dataset
        self.device = device
        self._batches = batch_sampler
        self._cache: PixelCache | None = None
        if cache != "none":
            where = device if cache == "device" else torch.device("cpu")
            self._cache = PixelCache.shared(dataset.source, where, cache_bytes)
        self.cached_bytes = 0 if self._cache is None else self._cache.pixels.nbytes
        self._windows: DataLoader[_Window] | None = None
        if cache != "device":
            self._windows = DataLoader(
                _Windows(dataset, self._cache),
                batch_sampler=batch_sampler,
                num_workers=workers,
                persistent_workers=workers > 0,
                pin_memory=device.type == "cuda",
                worker_init_fn=ignore_interrupts,
                # Its own generator: by default every pass would draw from the global one.
                generator=torch.Generator().manual_seed(0),
            )

    def __iter__(self) -> Iterator[CropBatch]:
        """Yields a pass of the batch sampler."""
        if self._windows is not None:
            yield from map(self._turned, self._windows)
        else:
            yield from map(self._cut, self._batches)

    def _turned(self, batch: _Window) -> CropBatch:
        pixels = batch.pixels.to(self.device, non_blocking=True).flatten(0, 2)
        walks, side = batch.walk, self.dataset.crop
        walks[:, 0] += torch.arange(len(walks)) * side**2
        return CropBatch(cut(pixels, walks, side), batch.task, batch.seed)

    def _cut(self, keys: list[int]) -> CropBatch:
        assert self._cache is not None
        side, sizes = self.dataset.crop, self.dataset.source.sizes
        walks, tasks, seeds = [], [], []
        for key in keys:
            index, task, seed, place = self.dataset.read(key)
            first, down, right = place.walk(side, sizes[index][1])
            walks.append((self._cache.firsts[index] + first, down, right))
            tasks.append(task)
            seeds.append(seed)
        crops = cut(self._cache.pixels, torch.tensor(walks), side)
        return CropBatch(crops, torch.tensor(tasks), torch.tensor(seeds))


class _Window(NamedTuple):
    """Part of a photograph, upright, and how it becomes a crop; or a batch of them."""

    pixels: Tensor  # uint8 [side, side, 3]
    walk: Tensor  # int64 [3]
    task: Any  # int, then int64 [B]
    seed: Any


class _Windows(Dataset[_Window]):
    """The windows of a dataset of crops, from its photographs or from a cache of them."""

    def __init__(self, dataset: CropDataset, cache: PixelCache | None) -> None:
        self._dataset = dataset
        self._images = dataset.source if cache is None else cache

    def __getitem__(self, key: int) -> _Window:
        index, task, seed, place = self._dataset.read(key)
        side = self._dataset.crop
        image = self._images.image(index)
        window = image[:, place.top : place.top + side, place.left : place.left + side]
        walk = Place(0, 0, place.flip, place.turns).walk(side, side)
        return _Window(window.permute(1, 2, 0).contiguous(), torch.tensor(walk), task, seed)
