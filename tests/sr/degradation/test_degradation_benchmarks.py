"""The degradation's benchmarks run, on crops far too small to tell anything."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.degradation import report
from benchmarks.degradation.contenders import CONTENDERS, contenders, work
from benchmarks.degradation.floors import AMOUNTS, Work, blur, limits
from benchmarks.degradation.images import stratified
from benchmarks.degradation.measure import peak_bytes, take_turns
from benchmarks.degradation.peer import why_not
from benchmarks.degradation.units import UNITS, Unit

CPU = torch.device("cpu")
SPEEDS = {"product": 1e9, "copy": 1e9, "randn": 1e9}


@pytest.mark.parametrize("operator", [name for name in CONTENDERS if name != "step"])
@pytest.mark.filterwarnings("ignore")
def test_everybody_takes_a_turn(operator: str) -> None:
    unit = Unit(operator, 96, 2, 1)
    for contender in contenders(unit):
        if contender.library == "BasicSR" and why_not():
            continue
        contender.build(unit)(0)
    least = work(unit)
    assert (least is None) == (operator == "kernels")
    assert least is None or least.seconds(SPEEDS) > 0


def test_units_are_on_both_devices() -> None:
    assert {unit.operator for unit in UNITS} == set(CONTENDERS)
    at_home = {replace(unit, rounds=0) for unit in UNITS if not unit.on_gpu}
    away = {replace(unit, rounds=0, device="cpu") for unit in UNITS if unit.on_gpu}
    assert {unit for unit in away if unit.operator != "step"} == at_home


def test_context_is_for_larger_crops() -> None:
    routes = {unit.size: {c.route for c in contenders(unit)} for unit in UNITS if unit.whole}
    assert "context=32" in routes[400]
    assert "context=32" not in routes[256]


def test_turns() -> None:
    taken: list[tuple[str, int]] = []
    calls = {name: lambda turn, name=name: taken.append((name, turn)) for name in "ab"}
    seconds = take_turns(calls, {"a": 3, "b": 1}, CPU)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 1}
    assert sorted(taken) == [("a", 0), ("a", 1), ("a", 2), ("b", 0)]
    assert all(limit(0) is not None for limit in limits(CPU).values())


def test_peak_is_of_what_is_held_at_once() -> None:
    def call(turn: int) -> None:
        one, two = torch.empty(1 << 18), torch.empty(1 << 18)
        del one, two
        torch.empty(1 << 18)

    assert peak_bytes(call, CPU) == pytest.approx(2 << 20, rel=0.01)


def test_floors() -> None:
    work = Work(flops=2e9, moved=3e9, normals=4e9) + Work(flops=1e9)
    assert work.seconds(SPEEDS) == 10
    assert work.times(0.5).seconds(SPEEDS) == 5
    assert set(AMOUNTS) == set(SPEEDS)
    dense, separable = (blur(400, 400, 5, separable=way) for way in (False, True))
    assert dense.flops == 2 * 25 * 3 * 400**2
    assert separable.flops < dense.flops
    assert blur(400, 400, 21, separable=False).flops < 1e8  # by the Fourier transform


@pytest.mark.parametrize("per_batch", [False, True])
def test_rows_are_spread_evenly(per_batch: bool) -> None:
    cubes = stratified(5, 4, per_batch=per_batch)
    assert cubes.shape == (5, 4, 38)
    cells = 5 if per_batch else 20
    column = cubes[:, 0, 7] if per_batch else cubes[..., 7].flatten()
    assert sorted((column * cells).long().tolist()) == list(range(cells))
    assert not per_batch or (cubes == cubes[:, :1]).all()


def test_report(tmp_path: Path) -> None:
    def benchmark(operator: str, library: str, seconds: float, **more: Any) -> dict[str, Any]:
        info = {
            "operator": operator,
            "size": 400,
            "batch": 12,
            "rounds": 3,
            "device": "cpu",
            "library": library,
            "route": "",
            "whole": operator == "pipeline",
            "per_sample": seconds,
            "peak_of_batch": 1.25,
            "floor": 0.001,
        }
        return {"extra_info": info | more, "stats": {"rounds": 3}}

    results = tmp_path / "results.json"
    who = {"operator": "blur", "size": 400, "batch": 12, "device": "cuda", "route": ""}
    step = {"device": "cuda", "batch": 48, "whole": True}
    results.write_text(
        json.dumps(
            {
                "machine_info": {"python_version": "3.11"},
                "benchmarks": [
                    benchmark("blur", "mtlweight", 0.002),
                    benchmark("blur", "BasicSR", 0.009),
                    benchmark("blur", "kornia", 0.3),
                    benchmark("pipeline", "mtlweight", 0.01),
                    benchmark("pipeline", "BasicSR", 0.04),
                    benchmark("pipeline", "mtlweight", 0.005, route="context=32"),
                    benchmark("step", "mtlweight", 0.001, **step),
                    benchmark("step", "training", 0.025, route="RRDBNet", **step),
                    {"extra_info": {"strategy": "pcgrad"}, "stats": {"rounds": 3}},
                ],
                "cannot_run": [who | {"library": "kornia", "reason": "there is no GPU"}],
            }
        )
    )
    distribution = {
        "rows": 3,
        "p_energy": 0.5,
        "statistics": [
            {"statistic": "mean", "distance": 0.1, "p": 0.9, "shift": 0.01, "p_paired": 0.8}
        ],
    }
    agreed = tmp_path / "agreement.json"
    agreed.write_text(
        json.dumps(
            {
                "basicsr": "1.4.2",
                "agreement": [
                    {"operator": "JPEG", "cases": 2, "largest": 2e-7, "mean": 0, "same": None}
                ],
                "level_counts": [[1, 1], [8, 8]],
                "distribution": distribution,
                "distribution_of_default": distribution,
            }
        )
    )
    (tmp_path / "performance.md").write_text(f"Before.\n{report.BEGIN}{report.END}\nAfter.\n")
    report.main([*map(str, (results, agreed)), "--out", str(tmp_path), "--docs", str(tmp_path)])
    page = (tmp_path / "performance.md").read_text()
    assert page.startswith("Before.")
    assert page.rstrip().endswith("After.")
    assert "| blur | 400 | 12 | 2 |  | 9 | 300 | 4.5 | 150 | 1 | 2 |" in page
    assert "| pipeline | 400 | 12 | mtlweight, context=32 | 200 | 8 | 1.25 |" in page
    assert "| mtlweight | 48 | 4.0% |" in page
    assert "| JPEG | 2 | 2.0e-07 | 0 |  |" in page
    assert "Poisson noise counts the same levels in 2 of 2 images." in page
    assert "blur of kornia: there is no GPU." in page
    assert (tmp_path / "pictures" / "degradation_speed.png").stat().st_size > 5_000
