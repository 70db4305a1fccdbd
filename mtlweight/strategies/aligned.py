"""Aligning the principal components of the task gradients."""

from __future__ import annotations

from typing import Literal, Unpack

import numpy as np
import torch
from torch import Tensor

from mtlweight.inputs import Metrics
from mtlweight.options import GramOptions, Tasks
from mtlweight.strategies.config import components
from mtlweight.strategies.dual_cone import Preferring

Scale = Literal["min", "median", "rmse"]


class AlignedMTL(Preferring):
    r"""Independent component alignment: orthogonal gradients of equal length, near the given ones.

    $$G = V \Lambda V^\top, \qquad w = \sqrt{\sigma}\, V \Lambda^{-1/2} V^\top p$$

    over the eigenvalues that are not zero, with $\sigma$ the least of them. The rows of
    $\sqrt\sigma\, G^{-1/2} J$ are orthogonal and of length $\sqrt\sigma$; the step is their sum
    weighted by the preference p. Ours is what counts as zero: eigenvalues of the cosines below
    $10^{-6}$ of the largest ($10^{-14}$ in double precision), and what is then left of those of G
    below the precision of float64. So a short gradient counts, and what rounding leaves between
    gradients that ought to be equal does not: kept, it would be $\sigma$, and stop the training.
    A task without gradient has no say, and gets the mean weight of the others (ours).

    Use it when training is unstable because gradients dominate or conflict: the system of gradients
    it leaves has condition number one. Not when two tasks have almost the same gradient, or one has
    a very short one: with `"min"` the step is as short as their least component; `scale="median"`
    or `"rmse"` keeps a longer one.

    Args:
        tasks: The names of the tasks, or their number.
        scale: $\sigma$: the least of the eigenvalues, as in the paper, their lower `"median"`, or
            their mean (`"rmse"`).
        preference: p, non-negative and not all zero: a mapping from task name, or `[T]`, taken as
            it is. By default $1/n$ for each of the n tasks present; ones give the authors' sum.
        **options: See `GramOptions`.

    Raises:
        OptionError: A preference is missing, negative or not finite, or all are zero.

    Source: Senushkin et al., *Independent component alignment for multi-task learning*, CVPR 2023,
    arXiv 2305.19000, algorithm 1. On features (`shared=features`) it is their faster variant.
    """

    def __init__(
        self,
        tasks: Tasks,
        *,
        scale: Scale = "min",
        preference: Metrics | None = None,
        **options: Unpack[GramOptions],
    ) -> None:
        super().__init__(tasks, preference=preference, **options)
        self.scale = scale

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        p = self.preferred(len(losses))
        moves = gram.numpy().diagonal() > 0
        if not moves.any():
            return p
        norms, cosines, directions = components(gram.numpy(), self.rounding)
        clean = norms[:, None] * (directions * cosines @ directions.T) * norms
        values, vectors = np.linalg.eigh(clean)
        kept = values > len(values) * np.finfo(values.dtype).eps * values[-1]
        values, vectors = values[kept], vectors[:, kept]
        square = {
            "min": values[0],
            "median": values[(len(values) - 1) // 2],
            "rmse": values.mean(),
        }[self.scale]
        weights = vectors @ (np.sqrt(square / values) * (vectors.T @ p.numpy()))
        weights[~moves] = max(weights[moves].mean(), 0.0)
        return torch.from_numpy(weights)
