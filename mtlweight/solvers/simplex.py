"""Projection on the simplex."""

from __future__ import annotations

import torch
from torch import Tensor


def simplex_projection(point: Tensor) -> Tensor:
    r"""Returns the nearest non-negative numbers that sum to one, `[T]`.

    $w_i = \max(v_i - \theta, 0)$ with the one $\theta$ for which they do, found by sorting.

    Args:
        point: v, `[T]`, on any device.

    Source: Held, Wolfe & Crowder, *Validation of subgradient optimization*, Mathematical
    Programming 1974.
    """
    point = point - point.max()  # the same projection, without losing the one in large numbers
    falling = point.sort(descending=True).values
    counts = torch.arange(1, len(point) + 1, dtype=point.dtype, device=point.device)
    thresholds = (falling.cumsum(0) - 1) / counts
    kept = (falling > thresholds).sum().clamp_min(1)
    return (point - thresholds.gather(0, kept[None] - 1)).clamp_min(0)
