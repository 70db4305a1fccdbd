"""Strategies around a strategy."""

from mtlweight.wrappers.base import Wrapper
from mtlweight.wrappers.bounded import Bounded
from mtlweight.wrappers.every import Every
from mtlweight.wrappers.log_losses import LogLosses
from mtlweight.wrappers.preference import Preference
from mtlweight.wrappers.smoothed import Smoothed
from mtlweight.wrappers.tempered import Tempered
from mtlweight.wrappers.warm_up import WarmUp

__all__ = [
    "Bounded",
    "Every",
    "LogLosses",
    "Preference",
    "Smoothed",
    "Tempered",
    "WarmUp",
    "Wrapper",
]
