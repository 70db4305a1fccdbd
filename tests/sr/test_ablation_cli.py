from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

SCRIPT = Path(__file__).parents[2] / "examples" / "sr_ablation.py"
SMALL = [
    *("--tasks", "2", "--scale", "2", "--intervals", "2", "--iterations", "3", "--batch", "4"),
    *("--crop", "32", "--val-crop", "32", "--device", "cpu", "--lpips", "none"),
    *("--model-set", "channels=8", "--model-set", "blocks=1"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        (root / split).mkdir()
        for index in range(2):
            pixels = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((40, 40)).save(root / split / f"{index}.png")
    return ["--data", str(root / "train"), "--val", str(root / "val")]


def invoke(*arguments: str) -> Result:
    spec = importlib.util.spec_from_file_location("sr_ablation", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    app = typer.Typer()
    app.command()(module.main)
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, list(arguments))


def test_a_run_from_the_command_line(images: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = invoke(
        *SMALL, *images, "--strategy", "dwa", "--spend", "both", "--set", "temperature=1.5",
        "--out", str(out),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    settings = json.loads((out / "results.json").read_text())["settings"]
    assert settings["options"] == {"dwa": {"temperature": "1.5"}}
    assert [f"{a['strategy']}:{a['spend']}" for a in settings["arms"]] == [
        "equal:loss",
        "dwa:loss",
        "dwa:data",
    ]
    for row in ("equal (loss)", "dwa (loss)", "dwa (data)", "bicubic"):
        assert row in result.output
    assert f"Report: {out / 'report.html'}" in result.output
    assert "Equal weights were added" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--strategy", "dwaa"], ["dwaa", "Did you mean 'dwa'"]),
        (["--spend", "gradients"], ["gradients", "loss, data"]),
        (["--strategy", "dwa", "--set", "heat=2"], ["heat", "temperature"]),
        (["--strategy", "dwa", "--set", "temperature=-1"], ["temperature", "-1", "greater than 0"]),
        (["--strategy", "fixed"], ["Fixed", "weights"]),
        (["--strategy", "dwa", "--gamma", "2"], ["gamma", "focal_achievement"]),
        (["--tasks", "9"], ["9", "2, 3, 4, 5", "physical4"]),
        (["--scale", "3"], ["scale", "2 or 4"]),
        (["--model", "swin"], ["swin", "rrdbnet, srresnet"]),
        (["--model-set", "depth=3"], ["depth"]),
        (["--preset", "huge"], ["huge", "demo, small, paper"]),
        (["--preset", "paper"], ["--data"]),
        (["--seeds", "0"], ["seeds", "0"]),
        (["--intervals", "0"], ["intervals", "0", "greater than or equal to 1"]),
        (["--crop", "33"], ["33", "multiple"]),
        (["--device", "toaster"], ["toaster", "cpu"]),
        (["--cache", "disk"], ["cache", "disk", "'none', 'host' or 'device'"]),
        (["--cache", "host", "--cache-gb", "1e-6"], ["photographs take", "1e-06 GB", "workers"]),
        (["--context", "3"], ["context", "multiple of the scale 2", "3"]),
        (["--data", "/nowhere"], ["data", "val"]),
        (["--data", "/nowhere", "--val", "/"], ["/nowhere", "folder"]),
        (["--lpips", "resnet"], ["lpips", "resnet", "alex"]),
        (["--lpips", "alex", "--lpips-backbone", "/nowhere.pth"], ["/nowhere.pth"]),
        (["--references", "/nowhere.json"], ["/nowhere.json"]),
    ],
)
def test_a_bad_option_says_what_is_allowed(
    arguments: list[str], words: list[str], tmp_path: Path
) -> None:
    result = invoke("--out", str(tmp_path / "out"), *arguments)
    assert result.exit_code == 2, result.output
    assert "Error:" in result.output
    for word in words:
        assert word in result.output


def test_a_used_folder_needs_resume(images: list[str], tmp_path: Path) -> None:
    arguments = [*SMALL, *images, "--strategy", "equal", "--out", str(tmp_path / "out")]
    assert invoke(*arguments).exit_code == 0
    again = invoke(*arguments)
    assert again.exit_code == 2
    assert "--resume" in again.output
    resumed = invoke(*arguments, "--resume")
    assert resumed.exit_code == 0
    assert "finished before" in resumed.output
    other = invoke(*arguments, "--resume", "--learning-rate", "0.5")
    assert other.exit_code == 2
    assert "training.learning_rate = 0.002" in other.output


def test_ctrl_c_exits_with_130_and_resume_gives_the_same_table(
    images: list[str], tmp_path: Path
) -> None:
    arguments = [*SMALL, *images, "--strategy", "dwa:data", "--workers", "1"]
    arguments += ["--no-baseline", "--iterations", "20"]
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments, "--out", str(tmp_path / "parts")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    started = tmp_path / "parts/runs/dwa-data-s0/tensorboard"
    limit = time.monotonic() + 60
    while not started.exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    # As a terminal does: to every process of the group, the loader's workers too.
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "--resume" in output
    assert (tmp_path / "parts/runs/dwa-data-s0/checkpoint.pt").exists()
    resumed = invoke(*arguments, "--out", str(tmp_path / "parts"), "--resume")
    assert "goes on from step" in resumed.output
    whole = invoke(*arguments, "--out", str(tmp_path / "whole"))
    assert resumed.exit_code == whole.exit_code == 0
    parts, uncut = (tmp_path / name / "results.csv" for name in ("parts", "whole"))
    assert parts.read_bytes() == uncut.read_bytes()
