r"""Inner products of the gradients of a layer's weight, without these gradients.

The gradient of task i in the weight of a linear layer is $a^\top d_i$, with the inputs $a$ `[N, I]`
that all tasks share and the gradient $d_i$ `[N, O]` of its outputs, so that

$$\langle a^\top d_i,\ a^\top d_j \rangle = \langle (a a^\top)\, d_i,\ d_j \rangle$$

needs $a a^\top$ once, and of each task only its pass through the activations. A bias counts as an
input of ones, and a convolution is a linear layer of its patches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node
from torch.nn import functional as F

from mtlweight.products import inner_products, widest
from mtlweight.task_gradients.shared_leaves import Graph

# A number of a T x P buffer is written and read back twice; that takes as long as so many products.
_MOVES = 60
# How much the float32 sum may cancel: the bound on a squared length, over the squared length.
_CANCELS = 1e5


class Layer(ABC):
    """A layer of the graph whose weight all tasks reach in one place.

    Attributes:
        weight: Its weight, a leaf.
        bias: Its bias, a leaf, where there is one among those asked for.
        edge: Where the gradient of its outputs passes.
    """

    weight: Tensor
    bias: Tensor | None
    edge: GradientEdge

    def __init__(self, node: Node, weight: Tensor, bias: Tensor | None) -> None:
        self.node: Any = node
        self.weight = weight
        self.bias = bias
        self.edge = GradientEdge(node, 0)
        self._outputs: Tensor | None = None

    @property
    def leaves(self) -> list[Tensor]:
        """The weight and, where there is one, the bias."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    @property
    @abstractmethod
    def sizes(self) -> tuple[int, int, int]:
        """The number of rows N, inputs I and outputs O of the product."""

    @abstractmethod
    def inputs(self) -> Tensor:
        """Returns $a$, `[N, I]`."""

    @abstractmethod
    def rows(self, gradient: Tensor) -> Tensor:
        """Returns the gradient of the outputs as `[N, O]`."""

    @abstractmethod
    def weight_gradient(self, rows: Tensor) -> Tensor:
        """Returns the gradient of the weight for a gradient `[N, O]` of the outputs."""

    def pays(self, num_tasks: int) -> bool:
        """Tells whether this route takes less time than T gradients of the weight."""
        n, i, o = self.sizes
        t = num_tasks
        return n * n * (i + t * o) + t * t * n * o + n * i * o < t * i * o * (n + _MOVES + t)

    def take(self, task: int, num_tasks: int, gradient: Tensor | None) -> None:
        """Notes the gradient of the outputs for one of the tasks; None where there is none."""
        if self._outputs is None:
            n, _, o = self.sizes
            self._outputs = self.weight.new_empty(num_tasks, n, o)
        if gradient is None:
            self._outputs[task] = 0
        else:
            self._outputs[task] = self.rows(gradient)

    def gram(self) -> Tensor:
        """Returns the inner products of the gradients of weight and bias, `[T, T]`, float64."""
        d = self._outputs
        assert d is not None
        a = self.inputs()
        kernel = a @ a.T
        if self.bias is not None:
            kernel += 1
        gram = _symmetric_form(kernel, d)
        # Gradients that are short because those of the samples cancel would drown in the rounding.
        lengths = torch.linalg.vector_norm(d, dim=2)
        bounds = (lengths @ kernel.diagonal().sqrt()).square().to(gram)
        if (_CANCELS * gram.diagonal() < bounds).any():
            ones = () if self.bias is None else (a.new_ones(len(a), 1),)
            wide = torch.cat([a, *ones], dim=1).to(gram.dtype).T
            explicit = torch.stack([wide @ rows.to(gram.dtype) for rows in d]).flatten(1)
            gram = explicit @ explicit.T
        return gram

    def combined(self, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the leaves, each with the weighted sum of the tasks' gradients."""
        d = self._outputs
        assert d is not None
        rows = (weights.to(d) @ d.flatten(1)).view_as(d[0])
        yield self.weight, self.weight_gradient(rows)
        if self.bias is not None:
            yield self.bias, rows.sum(0)


class Linear(Layer):
    """A product with a transposed weight, as `torch.nn.Linear` makes it."""

    def __init__(self, node: Node, weight: Tensor, bias: Tensor | None, saved: str) -> None:
        super().__init__(node, weight, bias)
        self._saved: Tensor = getattr(node, saved).detach()

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The number of rows N, inputs I and outputs O of the product."""
        return len(self._saved), self.weight.shape[1], self.weight.shape[0]

    def inputs(self) -> Tensor:
        """Returns $a$, `[N, I]`."""
        return self._saved

    def rows(self, gradient: Tensor) -> Tensor:
        """Returns the gradient of the outputs as `[N, O]`."""
        return gradient

    def weight_gradient(self, rows: Tensor) -> Tensor:
        """Returns the gradient of the weight, `[O, I]`."""
        return rows.T @ self._saved

    def write(self, gradient: Tensor, places: Sequence[Tensor]) -> None:
        """Writes the gradients of the leaves, flattened, for a gradient of the outputs."""
        torch.mm(gradient.T, self._saved, out=places[0].view_as(self.weight))
        if self.bias is not None:
            torch.sum(gradient, 0, out=places[1])


class Convolution(Layer):
    """A convolution over images, in one group."""

    def __init__(self, node: Node, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(node, weight, bias)
        self._saved: Tensor = self.node._saved_input.detach()
        self._how: dict[str, Any] = {
            name: tuple(getattr(node, f"_saved_{name}"))
            for name in ("stride", "padding", "dilation")
        }
        self._size = [
            (x + 2 * p - d * (k - 1) - 1) // s + 1
            for x, k, s, p, d in zip(
                self._saved.shape[2:], weight.shape[2:], *self._how.values(), strict=True
            )
        ]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The number of rows N, inputs I and outputs O of the product."""
        height, width = self._size
        return len(self._saved) * height * width, self.weight[0].numel(), len(self.weight)

    def inputs(self) -> Tensor:
        """Returns the patches, `[N, I]`."""
        patches = F.unfold(self._saved, self.weight.shape[2:], **self._how)
        return patches.transpose(1, 2).flatten(0, 1)

    def rows(self, gradient: Tensor) -> Tensor:
        """Returns the gradient `[B, O, H, W]` of the outputs as `[N, O]`."""
        return gradient.permute(0, 2, 3, 1).reshape(-1, len(self.weight))

    def weight_gradient(self, rows: Tensor) -> Tensor:
        """Returns the gradient of the weight, `[O, C, K, K]`."""
        images = rows.view(len(self._saved), *self._size, -1).permute(0, 3, 1, 2).contiguous()
        _, gradient, _ = torch.ops.aten.convolution_backward(
            images,
            self._saved,
            self.weight.detach(),
            None,
            *self._how.values(),
            False,
            [0, 0],
            1,
            [False, True, False],
        )
        return gradient  # type: ignore[no-any-return]


def find_layers(graph: Graph, asked: Mapping[int, Tensor]) -> list[Layer]:
    """Returns the layers of a graph that read these leaves.

    Args:
        graph: The graph of the step.
        asked: The leaves whose gradients are asked for, by identity.
    """
    layers = (_layer_of(graph, asked, key) for key in asked)
    return [layer for layer in layers if layer is not None]


def _layer_of(graph: Graph, asked: Mapping[int, Tensor], key: int) -> Layer | None:
    """Returns the layer that alone reads a leaf, as its weight."""
    weight = asked[key]
    node = _sole_user(graph, graph.accumulators.get(key))
    if node is None:
        return None
    if node.name() == "TBackward0" and weight.ndim == 2:
        product = _sole_user(graph, node)
        if product is None:
            return None
        if product.name() == "AddmmBackward0" and product.next_functions[2][0] is node:
            saved = "_saved_mat1"
        elif product.name() == "MmBackward0" and product.next_functions[1][0] is node:
            saved = "_saved_self"
        else:
            return None
        if not is_kept(product, saved) or getattr(product, "_saved_alpha", 1) != 1:
            return None
        plain = saved == "_saved_mat1" and getattr(product, "_saved_beta", 1) == 1
        bias = _bias_of(graph, asked, product, 0, weight.shape[:1]) if plain else None
        return Linear(product, weight, bias, saved)
    if (
        node.name() == "ConvolutionBackward0"
        and weight.ndim == 4
        and node.next_functions[1][0] is graph.accumulators[key]
        and is_kept(node, "_saved_input")
        and node._saved_groups == 1  # type: ignore[attr-defined]
        and not node._saved_transposed  # type: ignore[attr-defined]
        and node._saved_input.ndim == 4  # type: ignore[attr-defined]
    ):
        return Convolution(node, weight, _bias_of(graph, asked, node, 2, weight.shape[:1]))
    return None


def _sole_user(graph: Graph, node: Node | None) -> Node | None:
    users = [] if node is None else graph.users.get(node, [])
    return users[0] if len(users) == 1 else None


def is_kept(node: Node, saved: str) -> bool:
    """Tells whether a saved tensor is at hand, not recomputed or fetched from elsewhere."""
    raw = getattr(node, saved.replace("_saved_", "_raw_saved_"), None)
    return isinstance(getattr(raw, "data", None), Tensor)


def _bias_of(
    graph: Graph, asked: Mapping[int, Tensor], node: Node, place: int, outputs: torch.Size
) -> Tensor | None:
    """Returns the leaf that a node adds to each row of outputs, if it does nothing else."""
    added = node.next_functions[place][0]
    bias = getattr(added, "variable", None)
    if bias is None or id(bias) not in asked or _sole_user(graph, added) is None:
        return None
    return asked[id(bias)] if bias.shape == outputs else None


def _symmetric_form(kernel: Tensor, d: Tensor) -> Tensor:
    r"""Returns $\langle K d_i, d_j \rangle$ of a symmetric K `[N, N]` and d `[T, N, O]`, `[T, T]`.

    Only the blocks of K up to the diagonal are multiplied: those above it give the transpose.
    """
    n = len(kernel)
    half = torch.zeros(len(d), len(d), dtype=widest(d), device=d.device)
    size = max(64, n // 8)
    for start in range(0, n, size):
        end = min(start + size, n)
        rows = kernel[start:end, :end].clone()
        rows[:, start:] /= 2
        half += inner_products((rows @ d[:, :end]).flatten(1), d[:, start:end].flatten(1))
    return half + half.T
