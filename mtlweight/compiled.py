"""Strategies inside a compiled training step: one opaque operation, and no break in the graph."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

_KNOWN: weakref.WeakValueDictionary[int, object] = weakref.WeakValueDictionary()


def handle_of(strategy: object) -> int:
    """Returns a number by which `weigh` finds a strategy as long as it lives."""
    _KNOWN[id(strategy)] = strategy
    return id(strategy)


@torch.library.custom_op("mtlweight::weigh", mutates_args=())
def weigh(values: Tensor, handle: int, index: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Takes a step of a strategy: returns the value of its scalar, and its derivative `[m]`.

    Args:
        values: The losses of the tasks present, detached, `[m]`.
        handle: The strategy.
        index: The numbers of these tasks.
    """
    strategy = _KNOWN[handle]
    # An operation runs beneath autograd, which a strategy needs to differentiate its scalar.
    included = torch._C._dispatch_tls_local_include_set()
    excluded = torch._C._dispatch_tls_local_exclude_set()
    with torch._C._ForceDispatchKeyGuard(included, excluded - excluded):
        value, slopes = strategy.weigh_values(values, list(index))  # type: ignore[attr-defined]
    return value.clone(), slopes.clone()


@weigh.register_fake
def _(values: Tensor, handle: int, index: Sequence[int]) -> tuple[Tensor, Tensor]:
    return values.new_empty(()), torch.empty_like(values)
