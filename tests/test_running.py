from __future__ import annotations

import pytest
import torch

from mtlweight.running import RunningMean


def test_a_mean_does_not_lose_what_is_added_late() -> None:
    """To a sum of 16 million, as after so many steps, single precision can't add one."""
    running = RunningMean(2)
    first = 2.0**24
    running.add(slice(None), torch.tensor([first, 0.0]))
    for _ in range(999):
        running.add(torch.tensor([0]), torch.ones(1))
    wanted = [(first + 999) / 1000, 0]
    assert running.mean(torch.zeros(2)).tolist() == pytest.approx(wanted, rel=1e-5)
