from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "ours",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("ours")

# A run repeats bit for bit on one number of threads; set here, it holds for fixtures of any scope.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_seed() -> None:
    torch.manual_seed(0)
