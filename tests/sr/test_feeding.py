from __future__ import annotations

import gc
import io
import pickle
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from torch import Tensor

from mtlweight import QuotaSampler
from mtlweight.interval_plan import SampleKey
from mtlweight_sr.data import BundledPhotographs, CropDataset, PhotographFolder, pace
from mtlweight_sr.data import loader as feeding
from mtlweight_sr.data.crops import Place, PlaceDraws, cut
from mtlweight_sr.data.loader import CropBatch, CropLoader, PixelCache
from mtlweight_sr.data.pace import Pace
from mtlweight_sr.study.display import Display

CPU = torch.device("cpu")
SIZES = ((40, 50), (33, 24), (24, 61))
SIDE = 24


def keys(count: int) -> list[SampleKey]:
    return [SampleKey(i % len(SIZES), i % 4, 2**62 + 12345 * i) for i in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for index, (height, width) in enumerate(SIZES):
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    return tmp_path


@pytest.fixture
def pretended_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes tensors deny that they are on the host, so that crops are cut as on an accelerator."""
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda self: False), raising=False)


def by_hand(image: Tensor, place: Place, side: int) -> Tensor:
    window = image[:, place.top : place.top + side, place.left : place.left + side]
    return (window.flip(-1) if place.flip else window).rot90(place.turns, (-2, -1))


# --- cutting ---------------------------------------------------------------------------------


def test_the_stream_of_places_never_changes() -> None:
    draw = PlaceDraws()
    assert draw(5, 512, 512, 256) == (113, 128, 0, 3)
    assert draw(2**63 - 1, 321, 481, 128) == (146, 282, 1, 2)
    assert draw(5, 512, 512, 256) == (113, 128, 0, 3)
    # As one draws without a generator that is kept.
    for seed in (0, 1, 2**40 + 7):
        key = np.array([seed, 0x63726F70], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        assert draw(seed, 40, 24, 24) == tuple(generator.integers([17, 1, 2, 4]))
        assert pickle.loads(pickle.dumps(draw))(seed, 40, 24, 24) == draw(seed, 40, 24, 24)


@pytest.mark.parametrize("batched", [False, True])
def test_cutting_turns_as_flip_and_rot90_do(batched: bool, request: Any) -> None:
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in SIZES]
    pixels = torch.cat([image.flatten(1).T for image in images])
    firsts = [0, 40 * 50, 40 * 50 + 33 * 24]
    places = [Place(0, 0, flip, turns) for flip in (0, 1) for turns in range(4)]
    chosen = [(i, place) for i in range(3) for place in places]
    chosen += [(0, Place(40 - SIDE, 50 - SIDE, 1, 3)), (2, Place(0, 61 - SIDE, 0, 1))]
    walks = torch.tensor([place.walk(SIDE, SIZES[i][1]) for i, place in chosen])
    walks[:, 0] += torch.tensor([firsts[i] for i, _ in chosen])
    if batched:
        request.getfixturevalue("pretended_accelerator")
    crops = cut(pixels, walks, SIDE)
    assert crops.dtype == torch.uint8
    assert crops.is_contiguous()
    assert torch.equal(crops, torch.stack([by_hand(images[i], p, SIDE) for i, p in chosen]))


@given(seed=st.integers(0, 2**63 - 1), side=st.integers(1, 12), data=st.data())
def test_places_fit_and_walks_lead_there(seed: int, side: int, data: Any) -> None:
    height, width = data.draw(st.tuples(st.integers(side, 20), st.integers(side, 20)))
    place = PlaceDraws()(seed, height, width, side)
    assert 0 <= place.top <= height - side
    assert 0 <= place.left <= width - side
    image = torch.arange(height * width).remainder(251).byte().view(1, height, width)
    pixels = image.expand(3, -1, -1).flatten(1).T.contiguous()
    crops = cut(pixels, torch.tensor([place.walk(side, width)]), side)
    assert torch.equal(crops[0, :1], by_hand(image, place, side))


@pytest.mark.parametrize("walk", [(-1, 8, 1), (0, 8, -1), (60, 8, 1), (0, 30, 1)])
def test_crops_beyond_the_pixels_are_refused(walk: tuple[int, int, int]) -> None:
    pixels = torch.zeros(64, 3, dtype=torch.uint8)
    assert cut(pixels, torch.tensor([(0, 8, 1)]), 8).shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match="must lie in the 64 pixels, got places from"):
        cut(pixels, torch.tensor([walk]), 8)


# --- the loader ------------------------------------------------------------------------------


def batches(loader: CropLoader) -> list[CropBatch]:
    return list(loader)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", ["none", "host", "device"])
def test_crops_are_the_same_however_they_come(folder: Path, cache: Any, workers: int) -> None:
    dataset = CropDataset(PhotographFolder(folder), SIDE)
    plan = [keys(10)[:4], keys(10)[4:8], keys(10)[8:]]
    loader = CropLoader(dataset, plan, device=CPU, workers=workers, cache=cache)
    state = torch.random.get_rng_state()
    for _ in range(2):
        for batch, expected in zip(batches(loader), plan, strict=True):
            crops = [dataset[key] for key in expected]
            assert torch.equal(batch.images, torch.stack([crop.image for crop in crops]))
            assert batch.images.dtype == torch.uint8
            assert batch.images.is_contiguous()
            assert batch.tasks.tolist() == [key.task for key in expected]
            assert batch.seeds.tolist() == [key.seed for key in expected]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert loader.cached_bytes == (0 if cache == "none" else 3 * sum(h * w for h, w in SIZES))


@pytest.mark.usefixtures("pretended_accelerator")
@pytest.mark.parametrize("cache", ["none", "host", "device"])
def test_the_batched_path_cuts_the_same_crops(folder: Path, cache: Any) -> None:
    dataset = CropDataset(PhotographFolder(folder, cache_bytes=40 * 50 * 3), SIDE)
    (batch,) = batches(CropLoader(dataset, [keys(12)], device=CPU, cache=cache))
    expected = torch.stack([dataset[key].image for key in keys(12)])
    assert torch.equal(batch.images, expected)


@pytest.mark.parametrize("cache", ["none", "host", "device"])
def test_an_accelerator_is_asked_nothing(
    folder: Path, cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device tensors have no values: whoever reads one fails."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)  # needs an accelerator
    dataset = CropDataset(PhotographFolder(folder), SIDE)
    loader = CropLoader(dataset, [keys(8)], device=torch.device("meta"), cache=cache)
    (batch,) = batches(loader)
    assert batch.images.is_meta
    assert batch.images.shape == (8, 3, SIDE, SIDE)
    assert batch.seeds.tolist() == [key.seed for key in keys(8)]


def test_a_sampler_resumes_over_a_loader_without_workers(folder: Path) -> None:
    def parts() -> tuple[QuotaSampler, CropLoader]:
        sampler = QuotaSampler.for_generated(3, 2, num_samples=12, batch_size=4, seed=3)
        dataset = CropDataset(PhotographFolder(folder), SIDE)
        return sampler, CropLoader(dataset, sampler, device=CPU, cache="device")

    sampler, loader = parts()
    whole = list(sampler.track(loader))
    first, loader = parts()
    track = first.track(loader)
    begun = [next(track)]
    state = first.state_dict()
    second, loader = parts()
    second.load_state_dict(state)
    rest = list(second.track(loader))
    assert len(whole) == 3
    for one, other in zip(whole, begun + rest, strict=True):
        assert all(map(torch.equal, one, other))


def test_an_image_that_is_not_there_is_refused(folder: Path) -> None:
    dataset = CropDataset(PhotographFolder(folder), SIDE)
    for index in (3, -1):
        loader = CropLoader(dataset, [[SampleKey(index, 0, 0)]], device=CPU, cache="device")
        with pytest.raises(IndexError, match=rf"`index` must be in \[0, 2\], got {index}"):
            batches(loader)


# --- caches ----------------------------------------------------------------------------------


def test_a_cache_holds_every_image(folder: Path) -> None:
    source = PhotographFolder(folder)
    cache = PixelCache(source, CPU)
    assert cache.pixels.nbytes == source.decoded_bytes == 3 * sum(h * w for h, w in SIZES)
    for index in range(3):
        assert torch.equal(cache.image(index), source.image(index))


def test_what_does_not_fit_is_refused_before_it_is_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: Path) -> Tensor:
        raise AssertionError("a photograph was decoded")

    monkeypatch.setattr(feeding, "decode", refuse)
    dataset = CropDataset(PhotographFolder(folder), SIDE)
    size = dataset.source.decoded_bytes
    message = (
        r"The 3 photographs take 1\.28e-05 GB decoded, and `cache_bytes` allows 1\.28e-05 GB on "
        r"'cpu'; raise it .* cache='none'"
    )
    with pytest.raises(ValueError, match=message):
        CropLoader(dataset, [], device=CPU, cache="device", cache_bytes=size - 1)
    with pytest.raises(ValueError, match="`cache` must be one of none, host, device, got 'disk'"):
        CropLoader(dataset, [], device=CPU, cache="disk")  # type: ignore[arg-type]


def test_a_broken_file_is_named_when_the_cache_is_made(folder: Path) -> None:
    whole = (folder / "1.png").read_bytes()
    source = PhotographFolder(folder)
    (folder / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"1\.png' cannot be decoded"):
        PixelCache(source, CPU)


def test_loaders_of_the_same_photographs_share_a_cache_that_goes_with_them(folder: Path) -> None:
    source = PhotographFolder(folder)
    loaders = [
        CropLoader(CropDataset(source, side), [keys(3)], device=CPU, cache="device")
        for side in (8, SIDE)
    ]
    for file in source.files:
        file.unlink()
    loaders.append(CropLoader(CropDataset(source, 12), [keys(3)], device=CPU, cache="host"))
    assert [batches(loader)[0].images.shape[-1] for loader in loaders] == [8, SIDE, 12]
    found = weakref.ref(source)
    pixels = weakref.ref(feeding._CACHES[source][CPU].pixels)
    del source, loaders
    gc.collect()
    assert found() is None
    assert pixels() is None


def test_bundled_photographs_fit_by_far() -> None:
    source = BundledPhotographs()
    loader = CropLoader(CropDataset(source, 64), [[0, 1, 2]], device=CPU, cache="device")
    assert loader.cached_bytes == source.decoded_bytes < feeding.CACHE_BYTES / 100
    assert batches(loader)[0].images.shape == (3, 3, 64, 64)


# --- pace ------------------------------------------------------------------------------------


class Clock:
    now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_waiting_is_told_from_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)

    def slow() -> Iterator[int]:
        for batch in range(4):
            clock.now += 1.0
            yield batch

    watched = Pace()
    assert (watched.seconds, watched.waiting_share) == (0.0, 0.0)
    for batch in watched.watch(slow()):
        assert watched.waiting == batch + 1
        clock.now += 3.0
        assert watched.waiting_share == pytest.approx(0.25)
    clock.now += 50
    assert (watched.steps, watched.waiting, watched.seconds) == (4, 4.0, 16.0)
    assert watched.waiting_share == 0.25
    assert watched.steps_per_second == 0.25


def test_a_loop_that_breaks_off_stops_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    watched = Pace()
    for _ in watched.watch([0, 1]):
        clock.now += 2.0
        break
    gc.collect()
    clock.now += 2.0
    assert (watched.steps, watched.seconds) == (0, 2.0)


class _Trainer:
    class runtime:
        cache = "device"

    class problem:
        photographs = range(216)

    class loader:
        cached_bytes = 144_000_000

    class settings:
        intervals = 3
        spend = "loss"

    step = 0

    def __init__(self, share: float) -> None:
        self.pace = Pace()
        self.pace.waiting, self.pace._ended = share, 1.0


@pytest.mark.parametrize(("share", "shown"), [(0.3, True), (0.01, False)])
def test_the_display_tells_of_waiting_and_of_the_cache(share: float, shown: bool) -> None:
    from mtlweight_sr.training import IntervalRecord

    out = io.StringIO()
    one = {"a": 1.0}
    record = IntervalRecord(
        interval=1, psnr=one, ssim=one, losses=one, weights=one, counts={"a": 1}, skipped=0
    )
    trainer: Any = _Trainer(share)
    with Display(Console(file=out, force_terminal=True, width=200)) as display:
        display.plan(2)
        display.on_start(trainer)
        display.on_start(trainer)
        display.on_step(trainer)
        display._progress.refresh()
        display.on_interval(trainer, record)
    text = out.getvalue()
    assert text.count("216 photographs are kept decoded on the device: 144 MB") == 1
    assert f"{share:.0%} waiting for data" in text
    assert (f"dB  \x1b[33m{share:.0%} waiting for data" in text) == shown
