from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtlweight.metrics import Metrics, delta_m, delta_p, task_deltas

BASE: Metrics = {"A": [96, 98], "B": [0.2]}
NEW: Metrics = {"A": [93, 99], "B": [0.5]}
HIGHER = {"A": [True, False], "B": [True]}


def test_delta_p_of_the_published_example() -> None:
    assert delta_p(NEW, BASE, HIGHER) == pytest.approx(73.9636, abs=5e-5)
    flags = {"A": [1, 0], "B": 1}
    assert delta_p(NEW, BASE, flags) == delta_p(NEW, BASE, HIGHER)  # type: ignore[arg-type]


def test_delta_m_counts_every_metric_alike_and_the_other_way_round() -> None:
    expected = -100 / 3 * (-3 / 96 - 1 / 98 + 0.3 / 0.2)
    assert delta_m(NEW, BASE, HIGHER) == pytest.approx(expected)


def test_task_deltas_name_the_task_that_pays() -> None:
    deltas = task_deltas(NEW, BASE, HIGHER)
    assert deltas["A"] == pytest.approx(-50 * (3 / 96 + 1 / 98))
    assert deltas["B"] == pytest.approx(150)
    assert min(deltas, key=deltas.__getitem__) == "A"


def test_scalars_tensors_and_one_direction_for_all() -> None:
    new: Metrics = {"a": 1.1, "b": torch.tensor([0.9, 1.2])}
    base: Metrics = {"b": (1.0, 1.0), "a": torch.tensor(1.0)}
    assert delta_p(new, base) == pytest.approx((10 + 5) / 2)
    assert delta_p(new, base, False) == pytest.approx(-(10 + 5) / 2)
    assert delta_m(new, base) == pytest.approx(-(10 - 10 + 20) / 3)


def test_a_negative_reference_keeps_the_sign_of_the_improvement() -> None:
    assert delta_p({"a": -9.0}, {"a": -10.0}) == pytest.approx(10)


values = st.floats(0.1, 10)


@given(st.lists(st.tuples(values, values, st.booleans()), min_size=1, max_size=6))
def test_with_one_metric_a_task_the_two_are_opposite(
    rows: list[tuple[float, float, bool]],
) -> None:
    new = {str(i): n for i, (n, _, _) in enumerate(rows)}
    base = {str(i): b for i, (_, b, _) in enumerate(rows)}
    higher = {str(i): h for i, (_, _, h) in enumerate(rows)}
    assert delta_p(new, base, higher) == pytest.approx(-delta_m(new, base, higher))
    assert delta_p(base, base, higher) == 0


@pytest.mark.parametrize(
    ("new", "base", "higher", "message"),
    [
        ({}, {}, True, "at least one task"),
        ({"a": 1.0}, {"b": 1.0}, True, r"`reference` must be of the tasks \['a'\], got \['b'\]"),
        ({"a": 1.0}, {"a": 1.0}, {"b": True}, r"`higher_is_better` must be of the tasks"),
        ({"a": 1.0}, {"a": 0.0}, True, r"must not be zero.*'a' has \[0.0\]"),
        ({"a": float("nan")}, {"a": 1.0}, True, "`metrics` must be finite: task 'a' has nan"),
        ({"a": 1.0}, {"a": float("inf")}, True, "`reference` must be finite: task 'a' has inf"),
        ({"a": [1.0, 2.0]}, {"a": [1.0]}, True, "task 'a' has 2 and 1"),
        ({"a": []}, {"a": []}, True, "task 'a' has 0 and 0"),
        ({"a": [1.0]}, {"a": [1.0]}, {"a": [True, True]}, "1 booleans for task 'a'"),
        ({"a": [1.0]}, {"a": [1.0]}, {"a": [-1]}, r"1 booleans for task 'a', got \[-1\]"),
    ],
)
@pytest.mark.parametrize("measure", [delta_p, delta_m, task_deltas])
def test_refuses(measure, new, base, higher, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        measure(new, base, higher)
