"""The benchmarks run, on problems far too small to tell anything."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch

import mtlweight
from benchmarks import report
from benchmarks.contenders import Contender, Group, Step, kept, limits, ours, plain
from benchmarks.measure import Result, measure, peak_bytes
from benchmarks.peers import peers
from benchmarks.problems import Problem, Size, build_problem

TINY = Size(widths=(6, 5, 4), batch=8, images=2, pixels=32, channels=4, crops=2, crop=8)
GROUPS: tuple[Group, ...] = ("losses", "features", "parameters")


def is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


@pytest.mark.parametrize("group", GROUPS)
def test_every_strategy_takes_part(group: Group) -> None:
    problem = build_problem("mlp", 3, TINY)
    for contender in ours(group):
        contender.build(problem)()
        assert all(p.grad is not None for p in problem.encoder.parameters()), contender


def test_no_strategy_is_forgotten() -> None:
    names = {contender.name for group in GROUPS for contender in ours(group)}
    assert names == set(mtlweight.available())


@pytest.mark.parametrize(("name", "tasks"), [("mlp", 3), ("conv", 4), ("resnet18", 2)])
def test_gradients_on_every_problem(name: str, tasks: int) -> None:
    problem = build_problem(name, tasks, TINY)
    plain(problem)()
    expected = [p.grad.clone() for p in problem.encoder.parameters() if p.grad is not None]
    problem.clear()
    _, losses = problem.forward()
    mtlweight.Fixed(problem.tasks, weights=[1.0 if name != "conv" else 0.25] * tasks)(
        losses
    ).backward()
    found = [p.grad for p in problem.encoder.parameters()]
    if name != "resnet18":  # whose running statistics moved
        torch.testing.assert_close(found, expected)
    assert len(found) == len(expected) > 0


@pytest.mark.filterwarnings("ignore")
def test_peers_take_part() -> None:
    pytest.importorskip("torchjd")
    if not is_installed("LibMTL"):
        pytest.skip("LibMTL is not installed")
    problem = build_problem("mlp", 3, TINY)
    chosen = [
        *(c for c in peers("losses") if c.name in ("DWA", "Equal")),
        *(c for c in peers("features") if c.name == "MGDA"),
        *(c for c in peers("parameters") if c.name in ("PCGrad", "MGDA")),
    ]
    for contender in chosen:
        contender.build(problem)()


def test_turns_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "benchmarks.measure.peak_bytes", lambda problem, build: (1000, build(problem))
    )
    problem = build_problem("mlp", 3, TINY)

    def broken(problem: Problem) -> Step:
        raise RuntimeError("no solver\nsecond line")

    chosen = [c for c in ours("parameters") if c.name == "mgda"]
    failing = Contender("torchjd", "Broken", broken)
    found = measure(
        problem, limits("parameters"), [*limits("parameters"), *chosen, failing], 2, 0.0
    )
    assert found["torchjd:Broken"].reason == "RuntimeError: no solver"
    for name in ("limit:plain", "limit:naive", *map(str, chosen)):
        result = found[name]
        assert len(result.seconds) == len(result.baselines["naive"]) == 2
        low, middle, high = result.ratio("plain")
        assert 0 < low <= middle <= high


def test_rows_that_are_kept_add_up_to_the_plain_gradient() -> None:
    problem = build_problem("mlp", 3, TINY)
    plain(problem)()
    expected = [parameter.grad.clone() for parameter in problem._parameters]
    kept(problem)()
    for parameter, gradient in zip(problem._parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_peak_memory() -> None:
    """A step that holds two buffers of a megabyte at once, and then none."""
    problem = build_problem("mlp", 3, TINY)

    def build(problem: Problem) -> Step:
        def step() -> None:
            one, two = torch.empty(1 << 20, dtype=torch.uint8), torch.empty(1 << 20)
            del one, two
            torch.empty(1 << 21, dtype=torch.uint8)

        return step

    assert peak_bytes(problem, build)[0] == pytest.approx(5 << 20, rel=0.01)


def test_report(tmp_path: Path) -> None:
    def benchmark(tasks: int, library: str, name: str, ratio: float) -> dict[str, object]:
        info = {
            "problem": "mlp",
            "tasks": tasks,
            "group": "parameters",
            "library": library,
            "strategy": name,
            "key": name.lower(),
            "route": "",
            "kind": "gram",
            "shared_size": 100,
            "peak_bytes": 10**6 * tasks,
            "seconds_of_plain": [1.0],
            "ratio_to_plain": [ratio, ratio, ratio],
            "ratio_to_naive": [ratio / 2] * 3,
        }
        return {"extra_info": info, "stats": {"median": ratio / 100, "rounds": 5}}

    who = {"problem": "mlp", "tasks": 3, "group": "parameters", "library": "LibMTL", "route": ""}
    data = {
        "machine_info": {"python_version": "3.11"},
        "benchmarks": [
            benchmark(t, *c)
            for t in (3, 8)
            for c in (
                ("limit", "plain", 1.0),
                ("limit", "naive", 2.0),
                ("mtlweight", "mgda", 1.75),
                ("torchjd", "MGDA", 2.5),
            )
        ],
        "cannot_run": [who | {"strategy": "Nash_MTL", "reason": "ImportError: none"}],
    }
    results = tmp_path / "results.json"
    results.write_text(json.dumps(data))
    (tmp_path / "performance.md").write_text(f"Before.\n{report.BEGIN}{report.END}\nAfter.\n")
    report.main([str(results), "--out", str(tmp_path / "out"), "--docs", str(tmp_path)])
    page = (tmp_path / "performance.md").read_text()
    assert page.startswith("Before.")
    assert page.rstrip().endswith("After.")
    assert "| mgda | 0.88 (0.88–0.88) | 3 | 1.25 (1.25–1.25) | 3 |" in page
    assert "| LibMTL | Nash_MTL | mlp, T=3 | ImportError: none |" in page
    assert (tmp_path / "pictures" / "performance.png").stat().st_size > 10_000
    assert len(json.loads((tmp_path / "out" / "summary.json").read_text())["rows"]) == 8


def test_ratio_is_that_of_rounds() -> None:
    result = Result([2.0, 6.0, 2.0], {"plain": [1.0, 2.0, 1.0]})
    assert result.ratio("plain")[1] == 2.0
