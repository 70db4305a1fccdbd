"""The network at another point: its parameters moved for a moment, and put back to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from mtlweight.distributed import sum_over_ranks, world_size
from mtlweight.task_gradients.passes import backward_pass


class Surroundings:
    """The point where the parameters of a network are, and those around it.

    Vectors `[P]` hold the numbers of all leaves, one leaf after the other.

    Args:
        leaves: The parameters.
        like: A tensor with the precision and device of the vectors.
    """

    def __init__(self, leaves: Sequence[Tensor], like: Tensor) -> None:
        self.leaves = leaves
        self.like = like

    def here(self) -> Tensor:
        """Returns the parameters, `[P]`."""
        return self.joined([leaf.detach() for leaf in self.leaves])

    def joined(self, pieces: Sequence[Tensor | None]) -> Tensor:
        """Returns a vector `[P]` from a piece for each leaf; None is zeros."""
        flat = [
            self.like.new_zeros(leaf.numel())
            if piece is None
            else (piece.to_dense() if piece.is_sparse else piece).reshape(-1).to(self.like)
            for leaf, piece in zip(self.leaves, pieces, strict=True)
        ]
        return torch.cat(flat) if flat else self.like.new_zeros(0)

    def split(self, vector: Tensor) -> list[Tensor]:
        """Returns the piece of a vector `[P]` for each leaf, in its shape."""
        pieces = torch.split(vector, [leaf.numel() for leaf in self.leaves])
        return [piece.view(leaf.shape) for piece, leaf in zip(pieces, self.leaves, strict=True)]

    @contextmanager
    def moved(self, by: Tensor) -> Iterator[None]:
        """Adds a vector `[P]` to the parameters in place, and puts back what was there.

        To the bit, and also when the body raises. Graphs built before stay as good as they were:
        autograd is not told, and they are walked after the parameters are back. Graphs built in the
        body must be walked in it.
        """
        kept = [leaf.detach().clone() for leaf in self.leaves]
        # Autocast keeps copies of parameters in low precision: they would be those of elsewhere.
        torch.clear_autocast_cache()
        try:
            for leaf, piece in zip(self.leaves, self.split(by), strict=True):
                leaf.data.add_(piece.to(leaf.dtype))
            yield
        finally:
            for leaf, old in zip(self.leaves, kept, strict=True):
                leaf.data.copy_(old)
            torch.clear_autocast_cache()

    def gradients(self, values: Sequence[Tensor], option: str) -> Tensor:
        """Returns the gradients of m attached numbers, averaged over ranks, `[m, P]`.

        Raises:
            ValueError: None of them depends on the parameters; the message names the option.
        """
        trainable = [leaf for leaf in self.leaves if leaf.requires_grad]
        rows, unused = [], True
        for value in values:
            found = backward_pass([value], [torch.ones_like(value)], trainable)
            unused &= all(gradient is None for gradient in found)
            by_leaf = dict(zip(map(id, trainable), found, strict=True))
            rows.append(self.joined([by_leaf.get(id(leaf)) for leaf in self.leaves]))
        if unused:
            raise ValueError(
                f"What `{option}` returns does not depend on the parameters behind the losses of "
                "this step: compute it with the same network, not with a copy."
            )
        return sum_over_ranks(torch.stack(rows)) / world_size()


def held_out_gradient(
    validation: Callable[[], Tensor], around: Surroundings, by: Tensor | None, trial: str
) -> Tensor:
    """Returns the gradient of a held-out loss, averaged over ranks, `[P]`.

    Args:
        validation: Computes the loss with the parameters as they are.
        around: The parameters.
        by: What to add to them meanwhile, `[P]`; None for nothing.
        trial: How they were moved, for a message.

    Raises:
        TypeError: The loss is not a tensor.
        ValueError: It is not an attached scalar of these parameters, or not finite, or its gradient
            is not.
    """
    with nullcontext() if by is None else around.moved(by), torch.enable_grad():
        loss = validation()
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"`validation` returns {loss!r}, not a tensor: let it return the main task's "
                "loss on a held-out batch, attached."
            )
        if loss.numel() != 1 or not loss.requires_grad:
            raise ValueError(
                f"`validation` returns a tensor {list(loss.shape)}"
                f"{'' if loss.requires_grad else ', detached'}: let it return the main task's "
                "loss on a held-out batch, a scalar, as the network gives it."
            )
        seen = sum_over_ranks(loss.detach())
        v = around.gradients([loss.reshape(())], "validation")[0]
    if not (seen.isfinite() & v.isfinite().all()):
        length = torch.linalg.vector_norm(v).item()
        raise ValueError(
            f"`validation` returns {loss.item()!r}, with a gradient of length {length!r}, and "
            f"both must be finite: {trial} went too far, or the batch is bad."
        )
    return v
