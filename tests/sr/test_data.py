from __future__ import annotations

import pickle
import socket
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image
from torch.utils.data import DataLoader

from mtlweight_sr.data import BundledPhotographs, Crop, CropDataset, PhotographFolder


class Key(int):
    """What a sampler hands out: an image index that carries its task and its seed."""

    task: int
    seed: int

    def __new__(cls, index: int, task: int, seed: int) -> Key:
        key = super().__new__(cls, index)
        key.task, key.seed = task, seed
        return key

    def __getnewargs__(self) -> tuple[int, int, int]:
        return int(self), self.task, self.seed


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    Image.fromarray(pixels(40, 50, 1)).save(tmp_path / "b.png")
    Image.fromarray(pixels(60, 45, 2)).save(tmp_path / "deep" / "a.BMP")
    Image.fromarray(pixels(33, 32, 3)).save(tmp_path / "deep" / "c.webp", lossless=True)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


# --- folders ---------------------------------------------------------------------------------


def test_a_folder_is_read_recursively_in_sorted_order(folder):
    photographs = PhotographFolder(folder, minimum_size=32)
    assert photographs.names == ("b.png", "deep/a.BMP", "deep/c.webp")
    assert photographs.sizes == ((40, 50), (60, 45), (33, 32))
    assert len(photographs) == 3
    for index, image in enumerate([pixels(40, 50, 1), pixels(60, 45, 2), pixels(33, 32, 3)]):
        assert torch.equal(photographs.image(index), as_tensor(image))
        assert torch.equal(photographs[index], photographs.image(index))
        assert photographs.image(index).dtype == torch.uint8


def test_every_colour_mode_becomes_rgb(tmp_path):
    rgb = pixels(8, 9)
    gray = rgb[..., 0]
    Image.fromarray(gray).save(tmp_path / "gray.png")
    Image.fromarray(np.dstack([gray, rgb[..., 1]])).save(tmp_path / "gray_alpha.png")
    Image.fromarray(np.dstack([rgb, gray])).save(tmp_path / "alpha.png")
    Image.fromarray(gray > 127).save(tmp_path / "bilevel.png")
    palette = Image.fromarray(rgb).quantize(16)
    palette.save(tmp_path / "palette.png")
    palette.save(tmp_path / "palette_transparent.png", transparency=bytes(range(16)))
    photographs = PhotographFolder(tmp_path)
    images = dict(zip(photographs.names, photographs, strict=True))
    gray_tensor = as_tensor(np.dstack([gray] * 3))
    assert torch.equal(images["gray.png"], gray_tensor)
    assert torch.equal(images["gray_alpha.png"], gray_tensor)
    assert torch.equal(images["alpha.png"], as_tensor(rgb))
    assert torch.equal(images["bilevel.png"], (gray_tensor > 127) * 255)
    expected = as_tensor(np.asarray(palette.convert("RGB")))
    assert torch.equal(images["palette.png"], expected)
    assert torch.equal(images["palette_transparent.png"], expected)


def test_the_orientation_of_the_camera_is_applied(tmp_path):
    image = pixels(16, 24)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "turned.png", exif=exif)
    photographs = PhotographFolder(tmp_path)
    assert photographs.sizes == ((24, 16),)
    assert torch.equal(photographs.image(0), as_tensor(np.rot90(image, -1)))


def test_small_images_are_all_named(folder):
    with pytest.raises(ValueError, match=r"41 x 41 .* b.png \(40 x 50\), deep/c.webp \(33 x 32\)"):
        PhotographFolder(folder, minimum_size=41)
    with pytest.raises(ValueError, match=r"at least 34 x 34 pixels, got deep/c.webp \(33 x 32\);"):
        CropDataset(PhotographFolder(folder), crop=34)


def test_files_that_cannot_be_read_are_named(folder):
    (folder / "broken.jpg").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"broken\.jpg' is not an image"):
        PhotographFolder(folder)
    (folder / "broken.jpg").unlink()
    whole = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"b\.png' cannot be decoded"):
        PhotographFolder(folder).image(0)
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / "b.png")
    with pytest.raises(ValueError, match=r"b\.png' must have 8 bits per channel, got mode 'I;16'"):
        PhotographFolder(folder)


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="must be a folder of images"):
        PhotographFolder(tmp_path / "missing")
    with pytest.raises(
        FileNotFoundError, match=r"must hold \.bmp, \.jpeg, \.jpg, \.png, \.tif, \.tiff, \.webp"
    ):
        PhotographFolder(tmp_path)


def test_indices_out_of_range_are_refused(folder):
    photographs = PhotographFolder(folder)
    for index in (3, -1):
        with pytest.raises(IndexError, match=rf"`index` must be in \[0, 2\], got {index}"):
            photographs.image(index)


def test_the_cache_is_bounded_and_changes_no_pixel(folder):
    first, second = 3 * 40 * 50, 3 * 60 * 45
    photographs = PhotographFolder(folder, cache_bytes=first + second - 1)
    plain = [image.clone() for image in PhotographFolder(folder)]
    for _ in range(2):
        assert all(map(torch.equal, photographs, plain))
    for file in photographs.files:
        file.unlink()
    assert torch.equal(photographs.image(0), plain[0])
    assert torch.equal(photographs.image(2), plain[2])
    with pytest.raises(FileNotFoundError):
        photographs.image(1)
    with pytest.raises(ValueError, match="`cache_bytes` must be at least 0, got -1"):
        PhotographFolder(folder.parent, cache_bytes=-1)


def test_a_pickle_holds_no_pixels(folder):
    photographs = PhotographFolder(folder, cache_bytes=10**6)
    images = list(photographs)
    state = pickle.dumps(photographs)
    assert len(state) < 2000
    assert all(map(torch.equal, pickle.loads(state), images))


def test_content_hash_follows_the_bytes_and_their_order_but_not_the_names(folder):
    before = PhotographFolder(folder).content_hash()
    assert len(before) == 64
    (folder / "b.png").rename(folder / "c.png")
    assert PhotographFolder(folder).content_hash() == before
    (folder / "c.png").rename(folder / "z.png")
    assert PhotographFolder(folder).content_hash() != before
    (folder / "z.png").rename(folder / "b.png")
    Image.fromarray(pixels(40, 50, 9)).save(folder / "b.png")
    assert PhotographFolder(folder).content_hash() != before


# --- bundled photographs ---------------------------------------------------------------------


def test_bundled_photographs_are_those_of_the_packages():
    train, val = BundledPhotographs(), BundledPhotographs("val")
    assert train.names == ("astronaut", "chelsea", "coffee", "motorcycle_left", "rocket")
    assert val.names == ("china", "flower")
    for index, name in enumerate(["astronaut", "chelsea", "coffee"]):
        assert torch.equal(train.image(index), as_tensor(getattr(skimage.data, name)()))
    for index in range(2):
        expected = load_sample_image(f"{val.names[index]}.jpg")
        assert torch.equal(val.image(index), as_tensor(expected))
    assert all(min(size) >= 256 for size in train.sizes + val.sizes)
    assert train.content_hash() != val.content_hash()
    with pytest.raises(ValueError, match="`split` must be 'train' or 'val', got 'test'"):
        BundledPhotographs("test")


def test_bundled_photographs_need_no_network(monkeypatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    for split in ("train", "val"):
        assert all(image.ndim == 3 for image in BundledPhotographs(split))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("mtlweight_sr.data.photographs.find_spec", lambda package: None)
    with pytest.raises(ModuleNotFoundError, match=r"'sklearn'.* install `mtlweight\[sr\]`"):
        BundledPhotographs("val")


# --- crops -----------------------------------------------------------------------------------


def places(image: torch.Tensor, crop: torch.Tensor) -> list[tuple[int, int, bool, int]]:
    """Every (top, left, flip, turns) at which `image` shows `crop`."""
    side = crop.shape[-1]
    found = []
    for flip in (False, True):
        for turns in range(4):
            upright = crop.rot90(-turns, (-2, -1))
            upright = upright.flip(-1) if flip else upright
            windows = image.unfold(1, side, 1).unfold(2, side, 1)
            same = (windows == upright[:, None, None]).all(dim=(0, 3, 4))
            found += [(int(y), int(x), flip, turns) for y, x in same.nonzero()]
    return found


def test_a_crop_is_a_turned_slice_of_its_source(folder):
    photographs = PhotographFolder(folder)
    dataset = CropDataset(photographs, crop=20)
    assert len(dataset) == 3
    seen = set()
    for seed in range(60):
        index = seed % 3
        image, task, got = dataset[Key(index, 2, seed)]
        assert (task, got) == (2, seed)
        assert image.shape == (3, 20, 20)
        assert image.dtype == torch.uint8
        assert image.is_contiguous()
        found = places(photographs.image(index), image)
        assert len(found) == 1
        seen.add(found[0][2:])
    assert seen == {(flip, turns) for flip in (False, True) for turns in range(4)}


def test_positions_reach_every_edge(tmp_path):
    ramp = np.zeros((3, 5, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(3)[:, None], np.arange(5)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    dataset = CropDataset(PhotographFolder(tmp_path), crop=1)
    drawn = {tuple(dataset[Key(0, 0, seed)].image.flatten().tolist()) for seed in range(300)}
    assert drawn == {(y, x, 0) for y in range(3) for x in range(5)}


def test_a_crop_of_the_full_size_does_not_share_memory_with_the_cache(tmp_path):
    Image.fromarray(pixels(12, 12)).save(tmp_path / "a.png")
    source = PhotographFolder(tmp_path, cache_bytes=10**6)
    dataset = CropDataset(source, crop=12)
    for seed in range(16):
        dataset[Key(0, 0, seed)].image.zero_()
    assert torch.equal(source.image(0), as_tensor(pixels(12, 12)))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**63 - 1), task=st.integers(0, 9))
def test_a_crop_depends_on_its_key_alone(seed, task):
    dataset = CropDataset(BundledPhotographs("val"), crop=24)
    first = dataset[Key(1, task, seed)]
    torch.manual_seed(seed % 1000)
    np.random.seed(seed % 1000)
    dataset[Key(0, 0, seed + 1 if seed < 2**62 else 0)]
    second = dataset[Key(1, 0, seed)]
    assert torch.equal(first.image, second.image)
    assert (first.task, first.seed) == (task, seed)


def test_a_plain_integer_is_task_zero_seeded_by_itself():
    dataset = CropDataset(BundledPhotographs("val"), crop=16)
    plain, keyed = dataset[1], dataset[Key(1, 0, 1)]
    assert torch.equal(plain.image, keyed.image)
    assert (plain.task, plain.seed) == (0, 1)


def test_batches_are_the_same_for_any_number_of_workers():
    dataset = CropDataset(BundledPhotographs("val"), crop=32)
    keys = [Key(i % 2, i % 4, 1000 + i) for i in range(10)]
    batches = {
        workers: list(DataLoader(dataset, batch_size=4, sampler=keys, num_workers=workers))
        for workers in (0, 2)
    }
    for alone, spread in zip(batches[0], batches[2], strict=True):
        assert isinstance(spread, Crop)
        assert all(map(torch.equal, alone, spread))
    first = batches[0][0]
    assert first.image.shape == (4, 3, 32, 32)
    assert first.image.dtype == torch.uint8
    assert first.task.tolist() == [0, 1, 2, 3]
    assert first.seed.tolist() == [1000, 1001, 1002, 1003]


def test_crops_without_a_side_are_refused():
    with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
        CropDataset(BundledPhotographs("val"), crop=0)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_what_a_camera_wrote_may_be_damaged(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    file = tmp_path / f"photograph{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 1
    Image.fromarray(pixels).save(file, exif=exif)
    content = file.read_bytes()
    header = next(h for h in (b"II*\x00", b"MM\x00*") if h in content)
    file.write_bytes(content.replace(header, b"XX" + header[2:]))
    (image,) = PhotographFolder(tmp_path)
    assert image.shape == (3, 20, 30)
