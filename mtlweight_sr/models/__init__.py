"""Super-resolution networks, as classes and by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from mtlweight_sr.models.rrdbnet import RRDBNet
from mtlweight_sr.models.srresnet import SRResNet

__all__ = ["RRDBNet", "SRResNet", "available_models", "build_model"]

_MODELS: dict[str, Callable[..., nn.Module]] = {"rrdbnet": RRDBNet, "srresnet": SRResNet}


def available_models() -> tuple[str, ...]:
    """The names that `build_model` knows, in alphabetical order."""
    return tuple(sorted(_MODELS))


def build_model(name: str, scale: int, **options: Any) -> nn.Module:
    """A network by its name.

    Args:
        name: one of `available_models()`.
        scale: upscaling factor, 2 or 4.
        **options: keyword arguments of the class (`channels`, `blocks`, ...).

    Returns:
        A module that maps `[B, 3, h, w]` in [0, 1] to `[B, 3, scale * h, scale * w]`.

    Raises:
        ValueError: `name` is unknown; the message lists the names that exist.
    """
    if name not in _MODELS:
        raise ValueError(
            f"`name` must be one of {', '.join(available_models())}, got {name!r}; "
            "other networks are passed as modules instead of by name."
        )
    return _MODELS[name](scale=scale, **options)
