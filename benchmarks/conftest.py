"""What pytest needs to run the benchmarks: warnings of peers are none of ours."""

from __future__ import annotations

from typing import Any

import pytest

CANNOT_RUN = pytest.StashKey[list[dict[str, Any]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "ignore")
    config.stash[CANNOT_RUN] = []


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]
) -> None:
    """Adds who could not run, and why."""
    output_json["cannot_run"] = config.stash[CANNOT_RUN]
