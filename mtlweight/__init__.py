"""Task weighting for multi-task learning: on losses, on gradients, or on data."""

from mtlweight.metrics import delta_m, delta_p
from mtlweight.options import OptionError
from mtlweight.quotas import QuotaCarry, quotas, split
from mtlweight.registry import available, build
from mtlweight.sampler import QuotaSampler, SampleKey
from mtlweight.strategies import (
    DBMTL,
    DTP,
    DWA,
    GLS,
    IMTLL,
    MGDA,
    RLW,
    UW,
    Achievement,
    AvgNorm,
    Equal,
    Fixed,
    FocalAchievement,
    PCGrad,
)
from mtlweight.strategy import (
    GradientStrategy,
    GramStrategy,
    LossStrategy,
    MetricStrategy,
    Strategy,
)
from mtlweight.task_means import task_means
from mtlweight.wrappers import LogLosses

__version__ = "0.1.0"

__all__ = [
    "DBMTL",
    "DTP",
    "DWA",
    "GLS",
    "IMTLL",
    "MGDA",
    "RLW",
    "UW",
    "Achievement",
    "AvgNorm",
    "Equal",
    "Fixed",
    "FocalAchievement",
    "GradientStrategy",
    "GramStrategy",
    "LogLosses",
    "LossStrategy",
    "MetricStrategy",
    "OptionError",
    "PCGrad",
    "QuotaCarry",
    "QuotaSampler",
    "SampleKey",
    "Strategy",
    "available",
    "build",
    "delta_m",
    "delta_p",
    "quotas",
    "split",
    "task_means",
]
