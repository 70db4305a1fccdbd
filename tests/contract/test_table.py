from __future__ import annotations

import mtlweight
from tests.contract.strategies import CASES, REGISTERED, TASKS


def test_every_registered_strategy_is_in_the_table() -> None:
    assert set(REGISTERED) == {
        name
        for name, cls in mtlweight.available().items()
        if cls.__module__.startswith("mtlweight.")
    }


def test_the_table_tells_the_truth() -> None:
    for case in CASES:
        strategy = case.build(TASKS)
        assert strategy.nonnegative_losses == case.nonnegative, case.name
        assert strategy.tasks == TASKS
