"""Photographs in high resolution, and the crops that training draws from them by key."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mtlweight_sr.data.crops import Place, PlaceDraws
from mtlweight_sr.data.image_files import SUFFIXES, decode, size_of

_BUNDLED: dict[str, tuple[tuple[str, str], ...]] = {
    "train": (
        ("skimage", "data/astronaut.png"),
        ("skimage", "data/chelsea.png"),
        ("skimage", "data/coffee.png"),
        ("skimage", "data/motorcycle_left.png"),
        ("skimage", "data/rocket.jpg"),
    ),
    "val": (
        ("sklearn", "datasets/images/china.jpg"),
        ("sklearn", "datasets/images/flower.jpg"),
    ),
}


class Photographs(Dataset[Tensor]):
    """A list of image files, decoded to 8-bit RGB on access.

    Gray images get three equal channels, palettes their colours; an alpha channel is dropped
    without blending. The orientation stored by the camera is applied.

    Args:
        files: the images, in the order of their indices.
        names: one name per file.
        cache_bytes: decoded pixels to keep in memory, at most; default 0. Images are kept in the
            order of first access until the next does not fit. Each worker process has its own.

    Raises:
        ValueError: a file is not an image that can be read, or has more than 8 bits per channel.
    """

    def __init__(
        self, files: Sequence[Path], names: Sequence[str], *, cache_bytes: int = 0
    ) -> None:
        if cache_bytes < 0:
            raise ValueError(f"`cache_bytes` must be at least 0, got {cache_bytes}.")
        self.files = tuple(files)
        self.names = tuple(names)
        self.sizes = tuple(size_of(file) for file in self.files)
        self._cache: dict[int, Tensor] = {}
        self._cache_left = cache_bytes
        self._hash: str | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return self.image(index)

    def image(self, index: int) -> Tensor:
        """Image `index`, 0-based, as uint8 `[3, H, W]`; not to be written to.

        Raises:
            IndexError: there is no such image.
            ValueError: the file cannot be decoded.
        """
        self.check_index(index)
        if index in self._cache:
            return self._cache[index]
        image = decode(self.files[index])
        if image.nbytes <= self._cache_left:
            self._cache[index] = image
            self._cache_left -= image.nbytes
        return image

    def check_index(self, index: int) -> None:
        """Refuses what is no image's place.

        Raises:
            IndexError: there is no such image.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must be in [0, {len(self) - 1}], got {index}.")

    @property
    def decoded_bytes(self) -> int:
        """Bytes that all pixels take together."""
        return sum(3 * height * width for height, width in self.sizes)

    def content_hash(self) -> str:
        """SHA-256 over the files' bytes in the order of their indices; names do not enter."""
        if self._hash is None:
            digest = hashlib.sha256()
            for file in self.files:
                digest.update(hashlib.sha256(file.read_bytes()).digest())
            self._hash = digest.hexdigest()
        return self._hash

    def __getstate__(self) -> dict[str, Any]:
        # Workers that are spawned receive a pickle: the pixels are cheaper to decode again.
        cached = sum(image.nbytes for image in self._cache.values())
        return self.__dict__ | {"_cache": {}, "_cache_left": self._cache_left + cached}


class PhotographFolder(Photographs):
    """Every PNG, JPEG, WebP and BMP file below a folder, sorted by path.

    Names are paths relative to the folder, with forward slashes.

    Args:
        root: the folder, searched recursively.
        minimum_size: smallest height and width allowed, in pixels; default 1. Give the crop's.
        cache_bytes: decoded pixels to keep in memory, at most; default 0.

    Raises:
        FileNotFoundError: `root` is no folder, or holds no image.
        ValueError: a file cannot be read, or images are too small; the message names them.
    """

    def __init__(self, root: Path | str, *, minimum_size: int = 1, cache_bytes: int = 0) -> None:
        folder = Path(root)
        if not folder.is_dir():
            raise FileNotFoundError(f"`root` must be a folder of images, got {str(root)!r}.")
        files = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES]
        files = sorted(path for path in files if path.is_file())
        if not files:
            raise FileNotFoundError(
                f"`root` must hold {', '.join(sorted(SUFFIXES))} files, {str(root)!r} has none."
            )
        names = [path.relative_to(folder).as_posix() for path in files]
        super().__init__(files, names, cache_bytes=cache_bytes)
        _check_large_enough(self, minimum_size)


class BundledPhotographs(Photographs):
    """The colour photographs that scikit-image and scikit-learn install with themselves.

    `"train"`: astronaut, chelsea, coffee, motorcycle_left, rocket (scikit-image);
    `"val"`: china, flower (scikit-learn). No scene is in both. The right image of the motorcycle
    pair is left out as a near copy of the left one, and so are the microscope, retina and
    telescope images, which are no photographs of scenes. The files are read where the packages
    have put them: neither package is imported and nothing is downloaded.

    Args:
        split: `"train"` (default) or `"val"`.

    Raises:
        ValueError: `split` is neither.
        ModuleNotFoundError: the package that brings the photographs is not installed.
    """

    def __init__(self, split: Literal["train", "val"] = "train") -> None:
        if split not in _BUNDLED:
            raise ValueError(f"`split` must be 'train' or 'val', got {split!r}.")
        files = [_package_folder(package) / path for package, path in _BUNDLED[split]]
        size = sum(3 * height * width for height, width in map(size_of, files))
        super().__init__(files, [file.stem for file in files], cache_bytes=size)


class Crop(NamedTuple):
    """One training sample; the default collation turns it into a `Crop` of stacked tensors."""

    image: Tensor
    """uint8 `[3, crop, crop]`; `[B, 3, crop, crop]` once collated."""
    task: int
    """Index of the task whose degradation the sample gets; int64 `[B]` once collated."""
    seed: int
    """Seed of everything random about the sample; int64 `[B]` once collated."""


class CropDataset(Dataset[Crop]):
    """Random square crops, flipped and rotated, each a pure function of its key.

    `dataset[key]` takes image `int(key)`. Position, horizontal flip (probability 1/2) and
    rotation (a multiple of 90 degrees, each 1/4) depend on `key.seed` alone: the same keys give
    the same pixels whatever the workers, their number or the order. A plain integer stands for
    task 0 and its own value as seed.

    Args:
        source: the photographs.
        crop: side of the crops in pixels, at least 1.

    Raises:
        ValueError: an image is smaller than `crop`; the message names all of these images.
    """

    def __init__(self, source: Photographs, crop: int) -> None:
        _check_large_enough(source, crop)
        self.source = source
        self.crop = crop
        self._draw = PlaceDraws()

    def __len__(self) -> int:
        """Number of photographs."""
        return len(self.source)

    def __getitem__(self, key: int) -> Crop:
        index, task, seed, place = self.read(key)
        image = self.source.image(index)
        pixels = image[:, place.top : place.top + self.crop, place.left : place.left + self.crop]
        if place.flip:
            pixels = pixels.flip(-1)
        pixels = pixels.rot90(place.turns, (-2, -1)).clone(memory_format=torch.contiguous_format)
        return Crop(pixels, task, seed)

    def read(self, key: int) -> tuple[int, int, int, Place]:
        """What a key stands for, without a look at pixels: image, task, seed, place.

        Raises:
            IndexError: there is no such image.
        """
        index = int(key)
        self.source.check_index(index)
        task, seed = int(getattr(key, "task", 0)), int(getattr(key, "seed", index))
        return index, task, seed, self._draw(seed, *self.source.sizes[index], self.crop)


def _check_large_enough(source: Photographs, crop: int) -> None:
    if crop < 1:
        raise ValueError(f"The smallest side must be at least 1 pixel, got {crop}.")
    small = [
        f"{name} ({height} x {width})"
        for name, (height, width) in zip(source.names, source.sizes, strict=True)
        if min(height, width) < crop
    ]
    if small:
        raise ValueError(
            f"Images must be at least {crop} x {crop} pixels, got {', '.join(small)}; "
            "remove them or ask for smaller crops."
        )


def _package_folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"The bundled photographs come with {package!r}, which is not installed; "
            "install `mtlweight[sr]`."
        )
    return Path(spec.origin).parent
