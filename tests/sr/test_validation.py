from __future__ import annotations

import hashlib
import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from mtlweight_sr.data import BundledPhotographs, PhotographFolder
from mtlweight_sr.degradation import REALESRGAN_X4, degrade, draw_seeds
from mtlweight_sr.replay import replayed
from mtlweight_sr.tasks import Task, TaskSpace, preset
from mtlweight_sr.validation import ValidationSet
from mtlweight_sr.validation.commands import app
from mtlweight_sr.validation.rebuild import rebuild


def four_tasks(middle: float) -> TaskSpace:
    """Small or large kernels times a noise level below or above `middle`."""
    tasks = [
        Task.from_ranges(REALESRGAN_X4, name, kernel_size_1=sizes, noise_level_1=levels)
        for name, sizes, levels in (
            ("mild", (7, 13), (0.0, middle)),
            ("blur", (15, 21), (0.0, middle)),
            ("noise", (7, 13), (middle, 1.0)),
            ("severe/both", (15, 21), (middle, 1.0)),
        )
    ]
    return TaskSpace(REALESRGAN_X4, tasks)


@pytest.fixture(scope="module")
def space() -> TaskSpace:
    return four_tasks(0.5)


@pytest.fixture(scope="module")
def source() -> BundledPhotographs:
    return BundledPhotographs("val")


@pytest.fixture(scope="module")
def built(space, source, tmp_path_factory) -> ValidationSet:
    out = tmp_path_factory.mktemp("sets") / "small"
    return ValidationSet.build(source, space, seed=7, crop=64, out=out, natural=True)


def manifest(built: ValidationSet) -> dict:
    return json.loads((built.path / "manifest.json").read_text())


def copied(built: ValidationSet, to: Path) -> Path:
    for file in built.path.rglob("*"):
        if file.is_file():
            target = to / file.relative_to(built.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return to


def test_pairs_are_the_degraded_centre_crops(built, space, source):
    assert built.tasks == (*space.names, "natural")
    assert built.images == ("china", "flower")
    assert (len(built), built.scale) == (2, 4)
    for index in range(2):
        image = source.image(index)
        top, left = (image.shape[1] - 64) // 2, (image.shape[2] - 64) // 2
        crop = image[:, top : top + 64, left : left + 64].float()[None] / 255
        for task, name in enumerate(space.names):
            lr, hr = built.pairs(name)
            assert torch.equal(hr[index : index + 1], crop)
            row = space.draw(torch.tensor([task]), torch.tensor([index]), 7)
            row = replace(row, seed=draw_seeds([index], 7, stream=2**16 + task))
            torch.testing.assert_close(lr[index : index + 1], degrade(crop, row))
    assert lr.shape == (2, 3, 16, 16)
    assert lr.dtype == hr.dtype == torch.float32


def test_pairs_and_iterate_agree(built):
    for task in built.tasks:
        lr, hr = built.pairs(task)
        singles = list(built.iterate(task))
        assert torch.equal(torch.cat([single[0] for single in singles]), lr)
        assert torch.equal(torch.cat([single[1] for single in singles]), hr)


def test_tasks_share_their_rows_but_no_noise_and_natural_ones_are_independent(built, space):
    rows = {
        name: replayed([entry["parameters"] for entry in entries])
        for name, entries in manifest(built)["lr"].items()
    }
    cubes = {name: row.cube.numpy() for name, row in rows.items()}
    first, *others = space.names
    assert cubes[first].shape == (2, 38)
    assert not np.array_equal(cubes[first][0], cubes[first][1])
    for name in others:
        # Only the two columns that the preset cuts differ.
        assert 1 <= (cubes[name] != cubes[first]).any(axis=0).sum() <= 2
    assert (cubes["natural"] != cubes[first]).mean() > 0.9
    assert len({seed for row in rows.values() for seed in row.seed.tolist()}) == 2 * len(rows)


def test_the_manifest_records_parameters_exactly_and_hashes_of_all_files(built, space):
    recorded = manifest(built)
    for task, name in enumerate(space.names):
        drawn = space.draw(torch.full((2,), task), torch.arange(2), 7)
        entries = recorded["lr"][name]
        rows = replayed([entry["parameters"] for entry in entries])
        assert torch.equal(rows.cube, drawn.cube)
        for stage in ("first", "second", "final"):
            for field in fields(getattr(drawn, stage)):
                value = getattr(getattr(rows, stage), field.name)
                assert torch.equal(value, getattr(getattr(drawn, stage), field.name))
        assert [entry["words"] for entry in entries] == [drawn.describe(0), drawn.describe(1)]
    entries = [*recorded["hr"], *(entry for row in recorded["lr"].values() for entry in row)]
    files = {path.relative_to(built.path).as_posix() for path in built.path.rglob("*.png")}
    assert {entry["file"] for entry in entries} == files
    for entry in entries:
        content = (built.path / entry["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    assert recorded["versions"].keys() == {
        *("mtlweight", "torch", "numpy", "pillow", "python", "cpu")
    }
    assert recorded["request"]["seed"] == 7


def test_building_twice_gives_the_same_bytes(built, space, source, tmp_path):
    again = ValidationSet.build(source, space, seed=7, crop=64, out=tmp_path / "b", natural=True)
    assert manifest(again) == manifest(built)


def test_rebuilding_gives_the_same_bytes_on_any_number_of_threads(built, source, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = rebuild(built.path / "manifest.json", source, tmp_path / "again")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    files = {path.relative_to(built.path) for path in built.path.rglob("*") if path.is_file()}
    assert len(files) == 2 * 6 + 1
    for file in files:
        assert (again.path / file).read_bytes() == (built.path / file).read_bytes()
    assert (again.tasks, again.images, again.request) == (built.tasks, built.images, built.request)


def test_rebuilding_finds_photographs_by_name_among_others(space, tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()

    def write(name: str) -> None:
        pixels = generator.integers(0, 256, (40, 45, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / name)

    write("b.png")
    write("c.png")
    folder = PhotographFolder(tmp_path / "images")
    built = ValidationSet.build(folder, space, seed=0, crop=None, out=tmp_path / "set")
    write("a.png")
    more = PhotographFolder(tmp_path / "images")
    again = rebuild(built.path, more, tmp_path / "again")
    assert manifest(again) == manifest(built)


def test_rebuilding_names_photographs_that_changed(space, tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for name in ("a", "b", "c"):
        pixels = generator.integers(0, 256, (40, 45, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.png")
    folder = PhotographFolder(tmp_path / "images")
    built = ValidationSet.build(folder, space, seed=0, crop=32, out=tmp_path / "set")
    # Another file with the same pixels is the same photograph.
    Image.fromarray(pixels).save(tmp_path / "images" / "c.png", compress_level=0)
    (tmp_path / "images" / "a.png").unlink()
    Image.fromarray(255 - pixels).save(tmp_path / "images" / "b.png")
    changed = PhotographFolder(tmp_path / "images")
    with pytest.raises(ValueError, match=r"a\.png is missing; b\.png is changed"):
        rebuild(built.path, changed, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    Image.fromarray(pixels[:20]).save(tmp_path / "images" / "c.png")
    with pytest.raises(ValueError, match=r"b\.png, c\.png are changed"):
        rebuild(built.path, PhotographFolder(tmp_path / "images"), tmp_path / "again")


def test_rebuilding_compares_the_pixels(built, source, tmp_path):
    path = copied(built, tmp_path / "copy")
    content = manifest(built)
    entry = content["lr"]["noise"][1]
    entry["parameters"]["seed"] ^= 1
    content["versions"]["torch"] = "0.1"
    (path / "manifest.json").write_text(json.dumps(content))
    expected = rf"1 of 10 rebuilt LR images .*{entry['file']} first; torch 0\.1 then"
    with pytest.raises(ValueError, match=expected):
        rebuild(path, source, tmp_path / "again")
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileExistsError, match="`out` must not exist yet"):
        rebuild(built.path, source, built.path)
    with pytest.raises(FileNotFoundError, match=r"holds no manifest\.json"):
        rebuild(tmp_path, source, tmp_path / "again")
    content["format"] = 1
    (path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="must have format 2, got 1"):
        rebuild(path, source, tmp_path / "again")


def test_commands_build_check_and_rebuild(tmp_path):
    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(word) for word in arguments])

    first, second = tmp_path / "first", tmp_path / "second"
    options = ("--crop", 32, "--images", 1, "--preset", "paper2", "--out", first)
    assert "low_noise, high_noise, natural" in invoke("build", *options).output
    assert invoke("rebuild", first, "--out", second).exit_code == 0
    assert (first / "manifest.json").read_bytes() == (second / "manifest.json").read_bytes()
    assert invoke("check", second).exit_code == 0
    (second / "hr" / "0000.png").write_bytes(b"")
    for arguments, words in (
        (("check", second), "has changed"),
        (("build", *options), "must not exist yet"),
        (("build", tmp_path / "none", "--out", second), "must be a folder of images"),
        (("build", "--preset", "paper9", "--out", tmp_path / "third"), "paper9"),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert words in " ".join(result.output.split())


def test_compat_is_part_of_the_request(space, source, tmp_path):
    options = {"seed": 1, "crop": 32, "images": 1, "root": tmp_path / "sets"}
    ours = ValidationSet.load_or_build(source, space, **options)
    theirs = ValidationSet.load_or_build(source, space, compat="realesrgan", **options)
    assert theirs.path != ours.path
    for task in space.names:
        row = replayed([manifest(theirs)["lr"][task][0]["parameters"]])
        lr, hr = theirs.pairs(task)
        torch.testing.assert_close(lr, degrade(hr, row, compat="realesrgan"))
    assert manifest(rebuild(theirs.path, source, tmp_path / "again")) == manifest(theirs)


def test_loading_gives_what_was_built(built):
    loaded = ValidationSet.load(built.path)
    assert (loaded.tasks, loaded.images, loaded.request) == (
        built.tasks,
        built.images,
        built.request,
    )
    for task in built.tasks:
        assert all(map(torch.equal, loaded.pairs(task), built.pairs(task)))


def test_loading_names_the_broken_file(built, tmp_path):
    path = copied(built, tmp_path / "copy")
    victim = path / manifest(built)["lr"]["natural"][1]["file"]
    content = bytearray(victim.read_bytes())
    content[-20] ^= 1
    victim.write_bytes(content)
    with pytest.raises(ValueError, match=r"natural/0001\.png' has changed"):
        ValidationSet.load(path)
    victim.unlink()
    with pytest.raises(ValueError, match=r"natural/0001\.png' is missing"):
        ValidationSet.load(path)
    (path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json' is no manifest"):
        ValidationSet.load(path)
    (path / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no manifest\.json"):
        ValidationSet.load(path)


def test_load_or_build_reuses_the_same_request_alone(space, source, tmp_path, monkeypatch):
    def get(**changes: object) -> ValidationSet:
        options = {"seed": 1, "crop": 32, "images": 1, "root": tmp_path} | changes
        return ValidationSet.load_or_build(source, space, **options)

    first = get()
    stamp = (first.path / "manifest.json").stat().st_mtime_ns
    assert get().path == first.path
    assert (first.path / "manifest.json").stat().st_mtime_ns == stamp
    paths = {get(**change).path for change in ({"seed": 2}, {"crop": 36}, {"images": 2})}
    paths |= {get(natural=True).path, first.path}
    assert len(paths) == 5
    assert {path.parent for path in paths} == {tmp_path}
    assert {path for path in tmp_path.iterdir()} == paths


def test_load_or_build_follows_the_photographs_and_the_definitions(space, source, tmp_path):
    options = {"seed": 1, "crop": 32, "images": 1, "root": tmp_path}
    first = ValidationSet.load_or_build(source, space, **options)
    train = ValidationSet.load_or_build(BundledPhotographs("train"), space, **options)
    other = ValidationSet.load_or_build(source, four_tasks(0.25), **options)
    assert len({first.path, train.path, other.path}) == 3


def test_load_or_build_refuses_a_folder_made_for_something_else(space, source, tmp_path):
    options = {"seed": 1, "crop": 32, "images": 1, "root": tmp_path}
    first = ValidationSet.load_or_build(source, space, **options)
    file = first.path / "manifest.json"
    changed = json.loads(file.read_text())
    changed["request"]["seed"] = 5
    file.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="made for another request, which differs in seed"):
        ValidationSet.load_or_build(source, space, **options)


def test_a_build_that_fails_leaves_nothing(space, source, tmp_path, monkeypatch):
    calls = []

    def fail(*args: object, **kwargs: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("power cut")
        return degrade(*args, **kwargs)

    monkeypatch.setattr("mtlweight_sr.replay.degrade", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        ValidationSet.build(source, space, seed=1, crop=32, out=tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["two_stage4", "physical4"])
def test_any_kind_of_task_space_will_do(name, source, tmp_path):
    space = preset(name, scale=2)
    built = ValidationSet.build(source, space, seed=3, crop=32, out=tmp_path / "set", natural=True)
    assert built.tasks == (*space.names, "natural")
    assert all(built.pairs(task)[0].shape == (2, 3, 16, 16) for task in built.tasks)
    assert ValidationSet.load(built.path).scale == 2


def test_whole_images_are_cut_to_multiples_of_the_scale(space, tmp_path):
    (tmp_path / "images").mkdir()
    generator = np.random.default_rng(0)
    sizes = [(50, 63), (41, 48)]
    for index, size in enumerate(sizes):
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    folder = PhotographFolder(tmp_path / "images")
    built = ValidationSet.build(folder, space, seed=0, crop=None, out=tmp_path / "set")
    task = space.names[0]
    shapes = [(tuple(lr.shape), tuple(hr.shape)) for lr, hr in built.iterate(task)]
    assert shapes == [((1, 3, 12, 15), (1, 3, 48, 60)), ((1, 3, 10, 12), (1, 3, 40, 48))]
    for index, (_, hr) in enumerate(built.iterate(task)):
        height, width = hr.shape[-2:]
        assert torch.equal(hr[0] * 255, folder.image(index)[:, :height, :width].float())
    with pytest.raises(ValueError, match="`pairs` needs images of one size"):
        built.pairs(task)


def test_bad_requests_are_refused(built, space, source, tmp_path):
    def build(**changes: object) -> None:
        options = {"seed": 0, "crop": 32, "out": tmp_path / "set"} | changes
        ValidationSet.build(source, space, **options)

    with pytest.raises(FileExistsError, match="`out` must not exist yet"):
        build(out=built.path)
    for crop in (30, 0, -4, 428):
        with pytest.raises(ValueError, match=rf"`crop` must be a multiple of the scale 4.* {crop}"):
            build(crop=crop)
    for images in (0, 3):
        with pytest.raises(ValueError, match=rf"`images` must be in \[1, 2\], got {images}"):
            build(images=images)
    for read in (built.iterate, built.pairs):
        with pytest.raises(ValueError, match=r"`task` must be one of .*natural, got 'blurry'"):
            read("blurry")
    assert not (tmp_path / "set").exists()
