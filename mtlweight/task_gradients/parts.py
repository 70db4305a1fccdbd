"""Gradients made of one part per task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Parts:
    r"""A gradient made of one part per task, $\sum_i c_i v_i$.

    Attributes:
        coefficients: c, `[n]`; None where the gradient can't be told apart by task.
        vectors: v, `[n, P]`, or what makes them when they are asked for.
        total: The gradient, `[P]`, where it is at hand.
    """

    coefficients: Tensor | None
    vectors: Tensor | Callable[[], Tensor] | None
    total: Tensor | None = None

    def sum(self) -> Tensor:
        """Returns the gradient, `[P]`."""
        held = self.held()
        if self.total is not None:
            return held
        assert self.coefficients is not None
        return self.coefficients.to(held) @ held

    def held(self) -> Tensor:
        """Returns the gradient if it is at hand, else the vectors."""
        if self.total is not None:
            return self.total
        vectors = self.vectors() if callable(self.vectors) else self.vectors
        assert vectors is not None
        return vectors

    def times(self, factor: Tensor) -> Parts:
        """Returns the gradient times a number."""
        c, total = (
            None if x is None else x * factor.to(x) for x in (self.coefficients, self.total)
        )
        return Parts(c, self.vectors, total)

    def changed(self, weights: Tensor, new: Tensor) -> Parts:
        """Returns the gradient after the weights `[n]` of the tasks were changed to new ones.

        Each part follows the weight of its task; one that had no weight is weighted anew. A
        gradient without parts follows the sum of the weights.
        """
        if self.coefficients is None:
            before = weights.sum()
            return self.times(torch.where(before != 0, new.sum() / before, 1.0))
        follow = self.coefficients * (new / weights).to(self.coefficients)
        kept = torch.where(weights != 0, follow, new.to(self.coefficients))
        return Parts(kept, self.vectors)
