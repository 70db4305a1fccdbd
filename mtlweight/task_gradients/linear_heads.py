r"""Inner products of the gradients of features, without these gradients.

A head that begins with a linear layer $y = z W^\top$ sends $d\, W$ to the features z `[N, I]`,
with d `[N, O]` the gradient of y. Between two of them

$$\langle d_i W_i,\ d_j W_j \rangle = \langle d_i^\top d_j,\ W_i W_j^\top \rangle$$

which takes less time than the gradients themselves where the layers have few outputs, and their
weighted sum is one product of all d with all W.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from mtlweight.distributed import products_over_ranks
from mtlweight.products import widest, without_rounding
from mtlweight.task_gradients.base import Taken
from mtlweight.task_gradients.branches import Branch
from mtlweight.task_gradients.layers import is_kept
from mtlweight.task_gradients.sought import Sought

Array = np.ndarray[Any, Any]

# How far the sum over the columns may cancel before float32 is too short for it.
_CANCELS = 64


@dataclass(frozen=True)
class LinearHead:
    r"""A linear layer that reads the features, for one of the tasks.

    Attributes:
        task: The task.
        edge: Where the gradient d of its outputs passes.
        weight: $W^\top$, `[I, O]`.
    """

    task: int
    edge: GradientEdge
    weight: Tensor


def linear_heads(sought: Sought) -> list[LinearHead]:
    """Returns the layers that read the features; none where that does not pay, or others do."""
    if sought.branches is None or len(sought.shared) != 1:
        return []
    found = [_linear_head(branch) for branch in sought.branches]
    heads = [head for head in found if head is not None]
    (features,) = sought.shared
    if len(heads) < len(found) or features.ndim != 2 or features.dtype != sought.like.dtype:
        return []
    n, i = features.shape
    k, t = sum(head.weight.shape[1] for head in heads), len(sought.names)
    # On the other side T gradients: written, read, and multiplied with each other.
    return heads if 2 * k * k * (n + i) < t * (t + 20) * n * i else []


class HeadProducts(Taken):
    """Gradients of features as products of the gradients d of what heads make of them.

    The columns of all heads stand side by side, K in all.
    """

    def __init__(self, sought: Sought, heads: Sequence[LinearHead]) -> None:
        super().__init__(sought)
        edges = [head.edge for head in heads]
        found, at_edges = sought.of_all(edges)
        weights = [head.weight for head in heads]
        columns = [
            weight.new_zeros(len(sought.shared[0]), weight.shape[1]) if d is None else d
            for d, weight in zip(at_edges, weights, strict=True)
        ]
        self._outputs = torch.cat(columns, dim=1)  # [N, K]
        self._weights = torch.cat(weights, dim=1)  # [I, K]
        of_columns = [head.task for head in heads for _ in range(head.weight.shape[1])]
        self._tasks = torch.tensor(of_columns, device=self._outputs.device)  # [K]
        self._members = np.equal.outer(np.arange(len(sought.names)), of_columns).astype(float)
        if sought.step.scales is not None:
            self._outputs *= sought.step.scales.to(self._outputs)[self._tasks]
        for task in range(len(sought.names)):
            self._keep_own(task, found)

    def gram(self) -> Tensor:
        """Returns the inner products; see `TaskGradients`."""
        gram, bounds = self._products(self._outputs, self._weights)
        squares = gram.diagonal()
        if not ((squares > 1e-25) & (squares < 1e30) & (bounds < _CANCELS * squares)).all():
            gram, _ = self._products(*(x.to(widest(x)) for x in (self._outputs, self._weights)))
        total = products_over_ranks(torch.from_numpy(gram), self._outputs.device)
        return without_rounding(total)

    def item_lengths(self) -> Tensor:
        """Returns the lengths of each item's gradients; see `Taken`."""
        d, w = (x.to(widest(x)) for x in (self._outputs, self._weights))
        between = torch.where(self._tasks[:, None] == self._tasks, w.T @ w, 0.0)
        squares = (d @ between) * d  # [N, K]
        n = len(self.sought.names)
        return squares.new_zeros(n, len(d)).index_add(0, self._tasks, squares.T).clamp_min(0).sqrt()

    def _products(self, d: Tensor, w: Tensor) -> tuple[Array, Array]:
        """Returns the inner products `[T, T]`, and what the squared lengths are at most, `[T]`."""
        between, of_weights = torch.stack([d.T @ d, w.T @ w]).cpu().double().numpy()
        with np.errstate(all="ignore"):  # what is not finite is refused by name
            products = between * of_weights
            bounds = (self._members @ np.sqrt(products.diagonal())) ** 2
            return self._members @ products @ self._members.T, bounds

    def spend(self, value: Tensor, weights: Tensor, head_weights: Tensor) -> Tensor:
        """Returns the scalar; see `TaskGradients`."""
        (features,), by_task = self.sought.shared, self._tasks

        def shared(scale: Tensor, d: Tensor, w: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            scaled = (weights * scale.to(weights))[by_task]
            yield features, (d * scaled.to(d)) @ w.T

        return self._carry(value, shared, [self._outputs, self._weights], head_weights)


def _linear_head(branch: Branch) -> LinearHead | None:
    """Returns the layer that a branch begins with, if it is linear."""
    node = branch.node
    place = {"AddmmBackward0": 1, "MmBackward0": 0}.get(node.name())
    if place is None or list(branch.places) != [place] or getattr(node, "_saved_alpha", 1) != 1:
        return None
    if not is_kept(node, "_saved_mat2"):
        return None
    weight: Tensor = node._saved_mat2.detach()  # type: ignore[attr-defined]
    return LinearHead(branch.task, GradientEdge(node, 0), weight)
