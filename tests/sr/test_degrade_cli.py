from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from mtlweight_sr.degradation import REALESRGAN_X2, degrade
from mtlweight_sr.degrade import command
from mtlweight_sr.degrade.contact_sheet import Sample, contact_sheet, short_words
from mtlweight_sr.replay import degraded, recorded, replayed
from mtlweight_sr.tasks import preset


def invoke(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(command.main)
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, [str(word) for word in arguments])


def picture(seed: int, height: int = 48, width: int = 44) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    (folder / "more").mkdir(parents=True)
    picture(0).save(folder / "a.png")
    picture(1, 50, 47).save(folder / "more" / "b.bmp")
    return folder


def pixels(file: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)


def said(result):
    """What a command printed, as one line: where it breaks depends on the paths in it."""
    return " ".join(result.output.split())


def record(folder: Path) -> dict:
    return json.loads((folder / "parameters.json").read_text())


def test_a_folder_is_degraded_by_the_parameters_it_prints(photographs, tmp_path):
    out = tmp_path / "out"
    result = invoke(photographs, "--task", "blur", "--seed", 3, "--out", out)
    assert result.exit_code == 0, result.output
    assert {file.name for file in out.rglob("*.png")} == {"a.png", "b.png"}
    tasks = preset("paper4")
    sources = {"a.png": picture(0), "more/b.bmp": picture(1, 50, 47).crop((0, 0, 44, 48))}
    for entry in record(out)["images"]:
        row = replayed([entry["parameters"]])
        hr = torch.from_numpy(np.array(sources[entry["image"]])).permute(2, 0, 1)
        lr = degrade(hr[None].float() / 255, row)[0] * 255
        assert torch.equal(pixels(out / entry["output"]), lr.round().byte())
        assert lr.shape == (3, 12, 11)
        assert entry["task"] == tasks.names[int(tasks.assign(row))] == "blur"
        assert entry["words"] == row.describe(0)
        for step in row.describe(0).split("; "):
            assert step in said(result)
    assert "Wrote 2" in said(result)


def test_without_a_task_all_of_them_are_drawn(photographs, tmp_path):
    assert invoke(photographs, "--count", 12, "--crop", 16, "--out", tmp_path / "o").exit_code == 0
    entries = record(tmp_path / "o")["images"]
    assert len(entries) == 24
    assert {entry["task"] for entry in entries} == {"mild", "blur", "noise", "severe"}
    tasks = preset("paper4")
    for entry in entries:
        row = replayed([entry["parameters"]])
        assert tasks.names[int(tasks.assign(row))] == entry["task"]
    assert {pixels(tmp_path / "o" / entry["output"]).shape for entry in entries} == {(3, 4, 4)}


def test_the_seed_decides_and_more_copies_change_nothing(photographs, tmp_path):
    for name, *options in (("one",), ("two",), ("other", "--seed", 1), ("more", "--count", 2)):
        assert invoke(photographs, *options, "--out", tmp_path / name).exit_code == 0
    for file in ("a", "more/b"):
        first = pixels(tmp_path / "one" / f"{file}.png")
        assert torch.equal(first, pixels(tmp_path / "two" / f"{file}.png"))
        assert torch.equal(first, pixels(tmp_path / "more" / f"{file}-0.png"))
        assert not torch.equal(first, pixels(tmp_path / "more" / f"{file}-1.png"))
        assert not torch.equal(first, pixels(tmp_path / "other" / f"{file}.png"))


def test_compat_reaches_the_pipeline(photographs, tmp_path):
    for name, *options in (("ours",), ("theirs", "--compat", "realesrgan")):
        assert invoke(photographs, *options, "--out", tmp_path / name).exit_code == 0
    row = replayed([record(tmp_path / "theirs")["images"][0]["parameters"]])
    hr = torch.from_numpy(np.array(picture(0))).permute(2, 0, 1)[None].float() / 255
    theirs = degrade(hr, row, compat="realesrgan")[0].mul(255).round().byte()
    assert torch.equal(pixels(tmp_path / "theirs" / "a.png"), theirs)
    assert not torch.equal(pixels(tmp_path / "ours" / "a.png"), theirs)


def test_bad_files_are_named_and_skipped(photographs, tmp_path):
    (photographs / "text.png").write_text("no image")
    (photographs / "cut.png").write_bytes((photographs / "a.png").read_bytes()[:-200])
    picture(2, 3, 40).save(photographs / "thin.png")
    result = invoke(photographs, tmp_path / "none.png", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for name in ("text.png", "cut.png", "thin.png", "none.png"):
        assert sum(name in line for line in result.output.splitlines()) == 1
    assert "Wrote 2" in said(result)
    assert "Skipped: 4" in said(result)
    assert len(record(tmp_path / "out")["images"]) == 2
    alone = invoke(photographs / "text.png", photographs / "thin.png", "--out", tmp_path / "none")
    assert alone.exit_code == 1
    assert "None of the images could be degraded" in said(alone)
    assert not (tmp_path / "none").exists()


def test_a_record_makes_the_same_files_again(photographs, tmp_path):
    first, again, moved = (tmp_path / name for name in ("first", "again", "moved"))
    assert invoke(photographs, "--count", 2, "--crop", 32, "--out", first).exit_code == 0
    result = invoke("--replay", first / "parameters.json", "--out", again)
    assert result.exit_code == 0, result.output
    photographs.rename(tmp_path / "elsewhere")
    arguments = (tmp_path / "elsewhere", "--replay", first / "parameters.json", "--out", moved)
    assert invoke(*arguments).exit_code == 0
    files = sorted(file.relative_to(first) for file in first.rglob("*.png"))
    assert len(files) == 4
    for file in files:
        content = (first / file).read_bytes()
        assert (again / file).read_bytes() == (moved / file).read_bytes() == content
    assert record(again) == record(first)


def test_a_replay_names_what_has_changed(photographs, tmp_path):
    assert invoke(photographs, "--out", tmp_path / "first").exit_code == 0
    file = tmp_path / "first" / "parameters.json"
    picture(5).save(photographs / "a.png")
    content = record(tmp_path / "first")
    other = next(entry for entry in content["images"] if entry["image"] == "more/b.bmp")
    result = invoke("--replay", file, "--out", tmp_path / "second")
    assert result.exit_code == 0
    assert "a.png: the file has changed" in said(result)
    other["parameters"]["seed"] ^= 1
    file.write_text(json.dumps(content))
    result = invoke("--replay", file, "--out", tmp_path / "third")
    assert result.exit_code == 1
    assert "other pixels than the record's" in said(result)
    assert not list(tmp_path.glob("third/**/*.png"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 9}, ["format 9"]),
        ({"images": [{}]}, ["KeyError"]),
        ({"request": []}, ["TypeError"]),
        ({"outputs": "../a.png"}, ["../a.png", "leaves"]),
        ({"parameters": {"scale": 4}}, ["cannot be read"]),
    ],
)
def test_a_bad_record_is_refused(change, words, photographs, tmp_path):
    assert invoke(photographs, "--out", tmp_path / "first").exit_code == 0
    content = record(tmp_path / "first")
    if "outputs" in change:
        content["images"][0]["output"] = change["outputs"]
    elif "parameters" in change:
        content["images"][0] |= change
    else:
        content |= change
    (tmp_path / "bad.json").write_text(json.dumps(content))
    result = invoke("--replay", tmp_path / "bad.json", "--out", tmp_path / "second")
    assert result.exit_code == 2
    for word in ("no record", *words):
        assert word in said(result)


def test_nothing_is_replaced_unless_it_is_forced(photographs, tmp_path):
    out = tmp_path / "out"
    assert invoke(photographs, "--out", out).exit_code == 0
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    again = invoke(photographs, "--seed", 1, "--out", out)
    assert again.exit_code == 2
    assert "--force" in said(again)
    assert all(file.read_bytes() == content for file, content in before.items())
    assert invoke(photographs, "--seed", 1, "--out", out, "--force").exit_code == 0
    assert all(file.read_bytes() != content for file, content in before.items())
    source = (photographs / "a.png").read_bytes()
    own = invoke(photographs / "a.png", "--out", photographs, "--force")
    assert own.exit_code == 2
    assert "one of the images to degrade" in said(own)
    assert (photographs / "a.png").read_bytes() == source


def test_results_below_the_photographs_are_not_degraded_again(photographs):
    for _ in range(2):
        result = invoke(photographs, "--out", photographs / "lr", "--force")
        assert result.exit_code == 0
        assert "Wrote 2" in said(result)


def test_files_of_one_stem_keep_apart(photographs, tmp_path):
    picture(3).save(photographs / "a.bmp")
    assert invoke(photographs, "--out", tmp_path / "out").exit_code == 0
    names = {file.relative_to(tmp_path / "out").as_posix() for file in tmp_path.glob("out/**/*.*")}
    assert names == {"a.png.png", "a.bmp.png", "more/b.png", "parameters.json"}
    twice = invoke(photographs / "a.png", tmp_path / "out/a.png.png", "--out", tmp_path / "twice")
    assert twice.exit_code == 0
    same = invoke(photographs / "a.png", photographs / "a.png", "--out", tmp_path / "same")
    assert same.exit_code == 2
    assert "would all become" in said(same)


def test_an_interrupted_run_records_what_it_made(photographs, tmp_path, monkeypatch):
    calls = []

    def stop(*args: object, **kwargs: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return degraded(*args, **kwargs)

    monkeypatch.setattr("mtlweight_sr.degrade.files.degraded", stop)
    result = invoke(photographs, "--out", tmp_path / "out")
    assert result.exit_code == 130
    assert [entry["output"] for entry in record(tmp_path / "out")["images"]] == ["a.png"]
    assert (tmp_path / "out" / "a.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "blurry"], ["blurry", "mild, blur, noise, severe"]),
        (["--preset", "paper9"], ["paper9", "paper4", "physical4"]),
        (["--scale", "3"], ["scale", "3"]),
        (["--crop", "30"], ["crop", "30", "multiple of the scale 4"]),
        (["--crop", "0"], ["crop", "0"]),
        (["--seed", "-1"], ["seed", "-1"]),
        (["--count", "0"], ["count", "at least 1", "0"]),
        (["--compat", "basicsr"], ["basicsr", "realesrgan"]),
        (["--space", "/nowhere.json"], ["/nowhere.json"]),
        (["--replay", "/nowhere.json"], ["/nowhere.json"]),
        (["--replay", "/nowhere.json", "--task", "mild"], ["leave out --task"]),
    ],
)
def test_a_bad_option_says_what_is_allowed(arguments, words, photographs, tmp_path):
    result = invoke(photographs, *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    for word in words:
        assert word in said(result)
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_is_refused(tmp_path):
    result = invoke(tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "it has none" in said(result)


def test_a_space_of_ones_own(photographs, tmp_path):
    file = tmp_path / "space.json"
    file.write_text(REALESRGAN_X2.model_dump_json())
    arguments = (photographs, "--space", file, "--preset", "two_stage4", "--task", "noise")
    assert invoke(*arguments, "--out", tmp_path / "out").exit_code == 0
    assert pixels(tmp_path / "out" / "a.png").shape == (3, 24, 22)
    assert {entry["task"] for entry in record(tmp_path / "out")["images"]} == {"noise"}
    clash = invoke(*arguments, "--scale", 4, "--out", tmp_path / "other")
    assert clash.exit_code == 2
    assert "scale 2" in said(clash)


def test_the_module_runs_on_the_bundled_photographs(tmp_path):
    arguments = ["-m", "mtlweight_sr.degrade", "--crop", "64", "--sheet", "--out", "out"]
    result = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert len(list(tmp_path.glob("out/*.png"))) == 8
    assert "Sheet: out/sheet.png" in result.stdout


def places(sheet: np.ndarray, part: np.ndarray) -> list[tuple[int, int]]:
    """Where a picture, enlarged threefold, lies in the sheet."""
    large = part.repeat(3, axis=0).repeat(3, axis=1)
    height, width = large.shape[:2]
    rows, columns = (sheet == large[0, 0]).all(-1)[: -height + 1, : -width + 1].nonzero()
    return [
        (int(y), int(x))
        for y, x in zip(rows, columns, strict=True)
        if np.array_equal(sheet[y : y + height, x : x + width], large)
    ]


def test_the_sheet_shows_each_sample_in_each_task():
    tasks = preset("paper4")
    images = [torch.from_numpy(np.array(picture(i, 96, 80))).permute(2, 0, 1) for i in (0, 1)]
    samples = [Sample(f"photograph {i}", image, i) for i, image in enumerate(images)]
    sheet = np.array(contact_sheet(samples, tasks, seed=4, title="a title", side=16))
    found = []
    for sample in samples:
        for name in tasks.names:
            lr = degraded(sample.image, tasks.draw(name, [sample.id], 4))
            middle = lr[:, 4:20, 2:18].permute(1, 2, 0).numpy()
            (place,) = places(sheet, middle)
            found.append(place)
    rows, columns = zip(*found, strict=True)
    assert rows == (rows[0],) * 4 + (rows[4],) * 4
    assert columns[:4] == columns[4:] == tuple(sorted(set(columns)))
    clean = np.array(picture(0, 96, 80).resize((20, 24), Image.Resampling.BICUBIC))[4:20, 2:18]
    ((row, column),) = places(sheet, clean)
    assert row == rows[0]
    assert column < columns[0]
    # White margins: no text or picture is cut off.
    for border in (sheet[:8], sheet[-8:], sheet[:, :8], sheet[:, -8:]):
        assert (border == 255).all()


def test_the_sheet_shows_the_files_beside_it(photographs, tmp_path):
    options = ("--task", "noise", "--seed", 2, "--count", 2)
    result = invoke(photographs, *options, "--sheet", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    sheet = np.array(Image.open(tmp_path / "sheet.png"))
    for entry in record(tmp_path)["images"]:
        # Twice where the size of the kernel makes no difference.
        assert places(sheet, pixels(tmp_path / entry["output"]).permute(1, 2, 0).numpy())


def test_a_sheet_needs_samples():
    with pytest.raises(ValueError, match="expected `samples`"):
        contact_sheet([], preset("paper4"), seed=0)


@pytest.mark.parametrize("name", ["paper5", "two_stage4", "dasr3"])
def test_long_names_and_captions_stay_inside_the_sheet(name):
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    sample = Sample("a photograph of a name too long for its column " * 3, image, 1)
    sheet = np.array(contact_sheet([sample], preset(name), seed=0, title=name))
    assert (sheet[:, -8:] == 255).all()
    assert (sheet[:, 8:] < 255).any()


def test_short_words_have_the_same_pieces_in_every_row():
    rows = preset("dasr3").draw_natural(range(300), 0)
    words = [short_words(rows, i) for i in range(300)]
    assert len({tuple(map(len, lines)) for lines in words}) == 1
    one = preset("paper4").draw("mild", [7], 0)
    text = " ".join("".join(line) for line in short_words(one, 0))
    assert f"×{float(one.first.resize_scale):.2f}" in text
    assert f"JPEG {float(one.first.jpeg_quality):.0f}" in text


def test_records_keep_every_bit():
    rows = preset("dasr3").draw_natural(range(50), 3)
    back = replayed(json.loads(json.dumps(recorded(rows))))
    assert recorded(back) == recorded(rows)
    assert torch.equal(back.cube, rows.cube)
    assert torch.equal(back.seed, rows.seed)
    for change in ({"first": {}}, {"cube": "x"}, {"scale": 2}):
        with pytest.raises(ValueError, match="expected records of degradation parameters"):
            replayed([*recorded(rows[:1]), recorded(rows[:1])[0] | change])
    with pytest.raises(ValueError, match="at least one"):
        replayed([])
