"""What pytest needs to run the benchmarks: warnings of peers are none of ours."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest

from benchmarks.measure import set_up

T = TypeVar("T")

CANNOT_RUN = pytest.StashKey[list[dict[str, Any]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "ignore")
    config.stash[CANNOT_RUN] = []


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    set_up()


def selected(request: pytest.FixtureRequest, kind: type[T]) -> list[T]:
    """Returns the cases of a kind that this run was asked for."""
    items: list[Any] = request.session.items
    cases = [item.callspec.params.get("case") for item in items if hasattr(item, "callspec")]
    return [case for case in cases if isinstance(case, kind)]


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]
) -> None:
    """Adds who could not run, and why."""
    output_json["cannot_run"] = config.stash[CANNOT_RUN]
