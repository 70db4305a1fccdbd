from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import mtlweight
from mtlweight_sr.settings import ModelSettings, RuntimeSettings, TrainingSettings
from mtlweight_sr.study import AblationConfig, Arm, run_ablation
from mtlweight_sr.study.arms import build_strategy, needs_references, parse_arms, parse_options
from mtlweight_sr.study.display import Display, print_table
from mtlweight_sr.study.report import markdown_table
from mtlweight_sr.study.results import AVERAGE, GAIN, Table, metric_table
from mtlweight_sr.study.summary import Findings
from mtlweight_sr.tasks.separation import Separation, measure_separation
from mtlweight_sr.training import Trainer, TrainingInterrupted

RUNTIME = RuntimeSettings(device="cpu", tensorboard=False)
EQUAL = Arm(strategy="equal", spend="loss")
DWA = Arm(strategy="dwa", spend="loss")
FOCAL = Arm(strategy="focal_achievement", spend="data")


def write_images(folder: Path, count: int, seed: int) -> Path:
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for index in range(count):
        pixels = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((44, 40), Image.Resampling.BICUBIC)
        image.save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("images")
    return write_images(root / "train", 3, 0), write_images(root / "val", 2, 1)


@pytest.fixture(autouse=True, scope="module")
def few_rows() -> Iterator[None]:
    """Tasks are compared on a few LR images instead of hundreds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "mtlweight_sr.tasks.separation.measure_separation", partial(measure_separation, rows=12)
        )
        yield


def config(folders: tuple[Path, Path], out: Path, **changes: Any) -> AblationConfig:
    small: dict[str, Any] = {
        "arms": (DWA, FOCAL),
        "tasks": "2",
        "data": folders[0],
        "val": folders[1],
        "val_crop": 32,
        "model": ModelSettings(scale=2, options={"channels": 8, "blocks": 1}),
        "training": TrainingSettings(
            intervals=2, iterations=2, batch_size=4, crop=32, learning_rate=1e-3, average=0.5
        ),
        "out": out,
    }
    return AblationConfig(**(small | changes))


def run(chosen: AblationConfig, resume: bool = False, display: Display | None = None) -> Findings:
    display = Display(Console(quiet=True)) if display is None else display
    return run_ablation(chosen, runtime=RUNTIME, resume=resume, display=display)


class Stop(Display):
    """Stops at a step of the run with a label."""

    def __init__(self, label: str, step: int) -> None:
        super().__init__(Console(quiet=True))
        self.wanted, self.at, self.steps = label, step, 0

    def on_step(self, trainer: Trainer) -> None:
        super().on_step(trainer)
        self.steps += 1
        if self._label == self.wanted and trainer.step == self.at:
            trainer.stop()


# --- tables --------------------------------------------------------------------------------------


def table(**values: list[tuple[float, float]]) -> Table:
    """A table of PSNR with tasks a and b, from the pairs of each seed."""
    by_arm = {
        Arm(strategy=name, spend="loss"): {s: {"a": a, "b": b} for s, (a, b) in enumerate(pairs)}
        for name, pairs in values.items()
    }
    return metric_table("psnr", ["a", "b"], by_arm, EQUAL, {"bicubic": {"a": 40.0, "b": 40.0}})


def test_means_deviations_and_paired_gains() -> None:
    made = table(equal=[(20, 22), (21, 23)], dwa=[(21, 23), (23, 25)])
    equal, dwa, bicubic = made.rows
    assert equal.cells["a"].mean == 20.5
    assert equal.cells["a"].deviation == pytest.approx(0.5**0.5)
    assert equal.cells[AVERAGE].mean == 21.5
    assert GAIN not in equal.cells
    assert dwa.cells[GAIN].mean == 1.5
    assert dwa.cells[GAIN].deviation == pytest.approx(0.5**0.5)
    assert made.text(dwa, GAIN) == "+1.50 ± 0.71"
    assert made.text(bicubic, AVERAGE) == "40.00"


def test_best_and_second_best_are_marked_per_column_and_others_are_not_ranked() -> None:
    made = table(equal=[(20, 30)], dwa=[(21, 29)], gls=[(19, 28)])
    lines = [line.split(" | ") for line in markdown_table(made).splitlines()]
    assert lines[0][1:4] == ["a", "b", "average"]
    assert lines[2][:3] == ["| equal (loss)", "<u>20.00</u>", "**30.00**"]
    assert lines[3][:3] == ["| dwa (loss)", "**21.00**", "<u>29.00</u>"]
    assert lines[4][:3] == ["| gls (loss)", "19.00", "28.00"]
    assert lines[5][:3] == ["| *bicubic*", "40.00", "40.00"]


def test_what_prints_alike_is_marked_alike() -> None:
    made = table(equal=[(20.001, 20)], dwa=[(20.004, 20)], gls=[(19.5, 20)])
    marks = [[made.mark(row, column) for row in made.rows[:3]] for column in ("a", "b")]
    assert marks == [["best", "best", ""], ["", "", ""]]


def test_lpips_is_better_when_smaller() -> None:
    values = {EQUAL: {0: {"a": 0.3}}, DWA: {0: {"a": 0.2}}}
    made = metric_table("lpips", ["a"], values, None, {})
    assert [made.mark(row, "a") for row in made.rows] == ["second", "best"]
    assert GAIN not in made.columns


@pytest.mark.parametrize("width", [70, 200])
def test_the_table_fits_the_terminal(width: int) -> None:
    tasks = ["mild", "blur", "noise", "severe"]
    values = {FOCAL: {0: dict.fromkeys(tasks, 20.0)}, EQUAL: {0: dict.fromkeys(tasks, 21.0)}}
    stream = io.StringIO()
    made = metric_table("psnr", tasks, values, EQUAL, {})
    print_table(made, Console(width=width, file=stream))
    text = stream.getvalue()
    assert text.count("20.00") == text.count("21.00") == 5
    assert "-1.00" in text
    assert "…" not in text


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes a second or two, and is looked at in the tests of the module's study."""

    def draw(*arguments: Any) -> None:
        arguments[-1].write_bytes(b"")

    for name in ("plot_psnr", "plot_weights", "plot_samples"):
        monkeypatch.setattr(f"mtlweight_sr.study.summary.{name}", draw)


# --- a study from end to end ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(
    folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[AblationConfig, Findings]:
    chosen = config(folders, tmp_path_factory.mktemp("study") / "out", seeds=(0, 1))
    return chosen, run(chosen)


def test_the_files_are_there(study: tuple[AblationConfig, Findings]) -> None:
    out = study[0].out
    names = {"report.md", "report.html", "results.csv", "results.json"}
    assert names | {"psnr.png", "weights.png", "samples.png"} <= {p.name for p in out.iterdir()}
    assert {p.name for p in (out / "runs").iterdir()} == {
        f"{arm}-s{seed}"
        for arm in ("equal-loss", "dwa-loss", "focal_achievement-data")
        for seed in (0, 1)
    }
    assert study[1].report == out / "report.html"


def test_the_csv_has_every_interval_and_the_json_its_means(
    study: tuple[AblationConfig, Findings],
) -> None:
    out = study[0].out
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert len(rows) == 3 * 2 * 2 * 2
    results = json.loads((out / "results.json").read_text())
    psnr = results["tables"][0]
    dwa = next(row for row in psnr["rows"] if row["label"] == "dwa (loss)")
    last = [
        float(row["psnr"])
        for row in rows
        if (row["strategy"], row["interval"], row["task"]) == ("dwa", "2", "low_noise")
    ]
    assert dwa["cells"]["low_noise"]["mean"] == pytest.approx(sum(last) / 2, abs=1e-12)
    quotas = [int(row["quota"]) for row in rows if row["strategy"] == "focal_achievement"]
    assert sum(quotas) == 2 * 2 * 8
    assert results["references"].keys() == {"low_noise", "high_noise"}


def test_the_reports_hold_the_numbers_of_the_json(study: tuple[AblationConfig, Findings]) -> None:
    out = study[0].out
    results = json.loads((out / "results.json").read_text())
    markdown, html = (out / "report.md").read_text(), (out / "report.html").read_text()
    for made in results["tables"]:
        digits = {"psnr": 2, "ssim": 4}[made["metric"]]
        for row in made["rows"]:
            for cell in row["cells"].values():
                number = f"{abs(cell['mean']):.{digits}f}"
                assert number in markdown
                assert number in html
    for text in (markdown, html):
        assert "low_noise (p = 1/2)" in text
        assert "2 seeds" in text
        assert "There is no LPIPS column" in text
        assert "gain" in text
    assert html.count("data:image/png;base64,") == 3
    assert not re.search(r'src="(?!data:)', html)


@pytest.mark.usefixtures("no_plots")
def test_the_same_seed_gives_the_same_tables(
    study: tuple[AblationConfig, Findings], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    again = run(config(folders, tmp_path / "again", seeds=(0, 1)))
    assert again.tables == study[1].tables
    assert (tmp_path / "again/results.csv").read_bytes() == (
        study[0].out / "results.csv"
    ).read_bytes()


def test_arms_of_a_seed_start_alike_and_see_the_same_images(
    study: tuple[AblationConfig, Findings],
) -> None:
    first = {}
    for arm in ("equal-loss", "dwa-loss"):
        log = (study[0].out / "runs" / f"{arm}-s0" / "log.jsonl").read_text().splitlines()
        first[arm] = json.loads(log[0])["losses"]
    # Equal weights in its first two intervals: DWA is the baseline under another name.
    assert first["equal-loss"] == first["dwa-loss"]


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(
    ("label", "step"),
    [
        ("single-task references", 3),
        ("dwa (loss) seed 0", 1),
        ("focal_achievement (data) seed 1", 3),
    ],
)
def test_an_interrupted_study_resumes_to_the_same_results(
    study: tuple[AblationConfig, Findings],
    folders: tuple[Path, Path],
    tmp_path: Path,
    label: str,
    step: int,
) -> None:
    chosen = config(folders, tmp_path / "out", seeds=(0, 1))
    stop = Stop(label, step)
    with pytest.raises(TrainingInterrupted):
        run(chosen, display=stop)
    rest = Stop("", 0)
    found = run(chosen, resume=True, display=rest)
    assert stop.steps + rest.steps == 4 * (2 + 3 * 2)
    assert found.tables == study[1].tables


@pytest.mark.usefixtures("no_plots")
def test_finished_runs_are_kept_and_others_are_refused(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    chosen = config(folders, tmp_path / "out", arms=(DWA,))
    run(chosen)
    with pytest.raises(FileExistsError, match="--resume"):
        run(chosen)
    again = Stop("", 0)
    run(config(folders, tmp_path / "out", arms=(DWA,), seeds=(0, 1)), resume=True, display=again)
    assert again.steps == 2 * 4
    other = config(folders, tmp_path / "out", arms=(DWA,), options={"dwa": {"temperature": 3.0}})
    with pytest.raises(ValueError, match=r"options\.temperature = None, and now it is 3\.0"):
        run(other, resume=True)


@pytest.mark.usefixtures("no_plots")
def test_a_study_says_first_how_far_apart_its_tasks_are(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured() -> str:
        text = io.StringIO()
        shown = Display(Console(file=text, width=1000))
        run(config(folders, tmp_path / "out", arms=(EQUAL,)), resume=True, display=shown)
        return text.getvalue()

    first = measured()
    found = json.loads((tmp_path / "out/results.json").read_text())["separation"]
    words = Separation(**found).describe()
    assert first.splitlines()[0] == f"Tasks 2: {words}"
    assert words in (tmp_path / "out/report.md").read_text()

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("mtlweight_sr.tasks.separation.measure_separation", never)
    assert measured().splitlines()[0] == f"Tasks 2: {words}"


@pytest.mark.usefixtures("no_plots")
def test_a_failed_run_is_noted_and_the_others_go_on(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    broken = Arm(strategy="dtp", spend="loss")
    chosen = config(folders, tmp_path / "out", arms=(broken, DWA))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtlweight_sr.study.arms.METRICS", {})
        found = run(chosen)
    assert [row.label for row in found.tables[0].rows][:2] == ["equal (loss)", "dwa (loss)"]
    assert any("dtp (loss) seed 0 failed" in note for note in found.notes)
    assert "dtp (loss) seed 0 failed" in (tmp_path / "out/report.md").read_text()


@pytest.mark.usefixtures("no_plots")
def test_dtp_reads_ssim(folders: tuple[Path, Path], tmp_path: Path) -> None:
    found = run(config(folders, tmp_path / "out", arms=(Arm(strategy="dtp", spend="data"),)))
    assert [row.label for row in found.tables[0].rows][:2] == ["equal (loss)", "dtp (data)"]


@pytest.mark.usefixtures("no_plots")
def test_references_from_a_file_train_none(folders: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "references.json"
    file.write_text(json.dumps({"low_noise": 30.0, "high_noise": {"psnr": 25, "ssim": 0.5}}))
    count = Stop("", 0)
    found = run(config(folders, tmp_path / "out", references=file), display=count)
    assert count.steps == 3 * 4
    assert "single-task networks" in [row.label for row in found.tables[0].rows]
    assert "single-task networks" not in [row.label for row in found.tables[1].rows]


@pytest.mark.usefixtures("no_plots")
@pytest.mark.filterwarnings("ignore:The parameter 'pretrained':UserWarning")
@pytest.mark.filterwarnings("ignore:Arguments other than a weight enum:UserWarning")
def test_a_backbone_gives_an_lpips_column(folders: tuple[Path, Path], tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.save(torchvision.models.squeezenet1_1().features.state_dict(), tmp_path / "squeeze.pth")
    found = run(
        config(
            folders,
            tmp_path / "out",
            arms=(DWA,),
            lpips="squeeze",
            lpips_backbone=tmp_path / "squeeze.pth",
        )
    )
    assert [made.metric for made in found.tables] == ["psnr", "ssim", "lpips"]
    rows = list(csv.DictReader((tmp_path / "out/results.csv").read_text().splitlines()))
    assert {row["interval"] for row in rows if row["lpips"]} == {"2"}
    assert all(float(row["lpips"]) > 0 for row in rows if row["lpips"])


# --- arms and options ----------------------------------------------------------------------------


def test_arms() -> None:
    arms, notes = parse_arms("dwa,focal-achievement:data", "loss", ["a", "b"], {})
    assert arms == (DWA, FOCAL)
    assert not notes
    arms, _ = parse_arms("dwa", "both", ["a", "b"], {})
    assert [arm.spend for arm in arms] == ["loss", "data"]
    arms, notes = parse_arms("all", "loss", ["a", "b"], {})
    callables = {"auto_lambda", "forum", "moml", "slgrad"}  # they need losses to compute
    assert {arm.strategy for arm in arms} == set(mtlweight.available()) - {"fixed"} - callables
    assert len(notes) == 1 + len(callables)
    assert any("fixed is left out: Fixed needs `weights`" in note for note in notes)
    arms, notes = parse_arms("all", "loss", ["a", "b"], {"fixed": {"weights": [1.0, 2.0]}})
    assert "fixed" in {arm.strategy for arm in arms}
    with pytest.raises(ValueError, match="Did you mean 'dwa'"):
        parse_arms("dwaa", "loss", ["a"], {})
    with pytest.raises(ValueError, match="loss, data, loss,data or both, got 'gradients'"):
        parse_arms("dwa", "gradients", ["a"], {})
    with pytest.raises(ValueError, match="No strategy in"):
        parse_arms(",", "loss", ["a"], {})


def test_options_find_their_strategies() -> None:
    assert parse_options(["temperature=1.5"], ["dwa", "gls"]) == {"dwa": {"temperature": "1.5"}}
    assert parse_options(["rescale=one"], ["dwa", "gls"]) == {
        "dwa": {"rescale": "one"},
        "gls": {"rescale": "one"},
    }
    assert parse_options(["fixed.weights=1,2"], ["fixed"]) == {"fixed": {"weights": [1.0, 2.0]}}
    with pytest.raises(ValueError, match=r"No chosen strategy has the option 'heat'.*temperature"):
        parse_options(["heat=1"], ["dwa"])
    with pytest.raises(ValueError, match="'references'"):
        parse_options(["references=1,2"], ["focal_achievement"])
    with pytest.raises(ValueError, match="written as temperature"):
        parse_options(["temperature"], ["dwa"])
    with pytest.raises(ValueError, match="numbers with commas"):
        parse_options(["weights=a,b"], ["fixed"])


def test_strategies_get_what_they_need() -> None:
    assert needs_references("achievement")
    assert not needs_references("dwa")
    rlw = build_strategy(Arm(strategy="rlw", spend="loss"), ["a", "b"], {}, seed=7)
    assert isinstance(rlw, mtlweight.RLW)
    assert rlw.seed == 7
    focal = build_strategy(FOCAL, ["a", "b"], {"gamma": "3"}, references={"a": 1.0, "b": 2.0})
    assert isinstance(focal, mtlweight.FocalAchievement)
    assert focal.gamma == 3.0
    assert focal.references == {"a": 1.0, "b": 2.0}


def test_the_baseline_is_added_once(folders: tuple[Path, Path], tmp_path: Path) -> None:
    assert config(folders, tmp_path, arms=(DWA, EQUAL)).arms == (EQUAL, DWA)
    assert config(folders, tmp_path, arms=(DWA,)).arms == (EQUAL, DWA)
    assert config(folders, tmp_path, arms=(DWA,), baseline=None).arms == (DWA,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": (Arm(strategy="dwaa", spend="loss"),)}, "Did you mean 'dwa'"),
        ({"options": {"dwa": {"temperature": -1}}}, "temperature.*greater than 0"),
        ({"options": {"gls": {}}}, "'gls', which is no arm"),
        ({"tasks": "7"}, "2, 3, 4, 5"),
        ({"val": None}, "`data` and `val`"),
        ({"seeds": (0, 0)}, "must differ"),
        ({"unknown": 1}, "unknown"),
        ({"lpips": "resnet"}, "'alex', 'vgg', 'squeeze' or 'none'"),
    ],
)
def test_bad_settings_are_refused(
    folders: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config(folders, tmp_path, **changes)
