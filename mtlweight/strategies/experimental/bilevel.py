"""What bilevel strategies have in common: losses of another batch, taken at another point."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from mtlweight.distributed import average_over_ranks, sum_over_ranks, world_size
from mtlweight.gradient_strategy import _ReadsGradients
from mtlweight.inputs import Losses, Step, by_task, read_losses
from mtlweight.look_ahead import Surroundings
from mtlweight.options import GradientOptions, Positive, Tasks
from mtlweight.strategy import Weighed
from mtlweight.task_gradients import Rows, Shared, are_features, listed, rows_of

Closure = Callable[[], Losses]


@dataclass(frozen=True)
class Found:
    """The losses that a closure returned.

    Attributes:
        index: The m tasks it returned losses of.
        values: Their losses, attached.
        seen: The same averaged over ranks, detached, `[m]`.
    """

    index: list[int]
    values: list[Tensor]
    seen: Tensor


class Bilevel(_ReadsGradients):
    r"""A strategy whose weights are to lower other losses, say those of a held-out batch.

    A closure takes no arguments, computes losses with the parameters as the network has them, and
    returns them attached, in any form that a strategy takes. The strategy calls it in each step
    with the parameters moved, and moves them back. What else the call does is up to the user: put
    the network into `eval()` for it if batch statistics are to stay, repeat the training loop's
    `torch.autocast` in it, and with several ranks call the module itself, not its distributed
    wrapper, on as many samples on each rank.

    All parameters behind the losses are moved, those of heads too. So `shared=features` saves no
    time: what is shared is then looked for in the graph. A strategy with a lambda can be copied and
    its state saved, but it can't be pickled.

    Args:
        tasks: The names of the tasks, or their number.
        validation: The closure for the losses of the next held-out batch.
        learning_rate: What a trial step multiplies the gradient with.
        **options: See `GradientOptions`.
    """

    paper_weights_heads: ClassVar[bool] = True

    def __init__(
        self,
        tasks: Tasks,
        *,
        validation: Closure,
        learning_rate: Positive,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(tasks, **options)
        self.validation = partial(validation)  # a bare module would become a part of this one
        self.learning_rate = learning_rate

    @abstractmethod
    def combine(
        self, gradients: Tensor, losses: Tensor, around: Surroundings
    ) -> tuple[Tensor, Tensor]:
        """Returns the weights `[n]`, and the gradient that each is the weight of, `[n, P]`.

        Args:
            gradients: Those of the tasks present in all parameters, heads last, `[n, P]`.
            losses: Their losses, `[n]`.
            around: The parameters.
        """

    def weigh_step(self, step: Step, shared: Shared | None) -> Weighed:
        """Returns the weights, to be spent with the gradients that go with them."""
        sought = self._seek(step, _leaves(shared), weighted_heads=False)
        found = rows_of(sought, self.workspace)
        around = Surroundings(
            [*found.sought.shared, *(leaf for leaf, _ in found.sought.own)], found.rows
        )
        gradients = _all_gradients(found, around)
        gram = found.gram()
        finite = gradients.isfinite().all(1).cpu()
        self.refuse_infinite(torch.where(finite, gram.diagonal(), torch.inf))
        weights, vectors = self.combine(gradients, step.seen, around)
        size = found.rows.shape[1]
        if self.rescale != "none":
            length = torch.linalg.vector_norm(weights.to(vectors) @ vectors[:, :size])
            weights = weights * self._stretch(weights, gram, length).to(weights)

        def spend(value: Tensor, weights: Tensor) -> Tensor:
            heads = self._head_weights(weights, step.seen)
            if self.heads == "paper" and vectors is not gradients:
                new = [
                    dict(zip(map(id, around.leaves), around.split(v), strict=True)) for v in vectors
                ]
                found.own_gradients = [
                    [(leaf, new[task][id(leaf)]) for leaf, _ in mine]
                    for task, mine in enumerate(found.own_gradients)
                ]
            return found.carry(value, weights.to(vectors) @ vectors[:, :size], heads)

        return Weighed(weights, (weights * step.seen).sum(), spend)

    @contextmanager
    def losses_at(
        self, around: Surroundings, by: Tensor | None, closure: Closure, option: str
    ) -> Iterator[Found]:
        """Gives the losses of a closure with the parameters moved by a vector `[P]`, or here.

        Raises:
            TypeError: A loss is not a floating point tensor.
            ValueError: A loss is not a scalar, detached, of an unknown task, or on another device;
                or the ranks have different tasks.
        """
        with nullcontext() if by is None else around.moved(by), torch.enable_grad():
            given = closure()
            try:
                step = read_losses(self.tasks, given, training=True)
            except (TypeError, ValueError, RuntimeError) as error:
                raise type(error)(f"What `{option}` returns is no good: {error}") from error
            step = average_over_ranks(self.num_tasks, step, None)
            if len(step.roots) < len(step.index):
                raise ValueError(
                    f"`{option}` returns losses of other tasks on other ranks: let it return those "
                    "of the same tasks on each."
                )
            yield Found(step.index, list(by_task(self.tasks, given, "").values()), step.seen)

    def refuse_infinite_losses(self, found: Found, losses: Tensor | None) -> None:
        """Refuses held-out losses that are not finite; `losses` `[n]` are those stepped along."""
        for i, value in zip(found.index, found.seen.tolist(), strict=True):
            if abs(value) < float("inf"):
                continue
            reason = "look at the batch"
            if losses is not None:
                here = dict(zip(self._names(), losses.tolist(), strict=True))
                reason = (
                    f"a trial step with learning rate {self.learning_rate} along the losses {here} "
                    "went too far, or the batch is bad"
                )
            raise ValueError(
                f"`validation` returns {value!r} as the loss of task {self.tasks[i]!r}: {reason}."
            )

    def _names(self) -> list[str]:
        return [self.tasks[i] for i in self.index]


def _leaves(shared: Shared | None) -> Shared | None:
    """Returns what is given as shared, unless it is features."""
    given = listed(shared)
    return None if are_features(given) else given


def _all_gradients(found: Rows, around: Surroundings) -> Tensor:
    """Returns the task gradients in all parameters, averaged over ranks, `[n, P]`."""
    if not found.sought.own:
        return found.rows
    heads = Surroundings(around.leaves[len(found.sought.shared) :], around.like)
    mine = [{id(leaf): gradient for leaf, gradient in task} for task in found.own_gradients]
    own = torch.stack([heads.joined([task.get(id(t)) for t in heads.leaves]) for task in mine])
    return torch.cat([found.rows, sum_over_ranks(own) / world_size()], dim=1)


def products(rows: Tensor, vector: Tensor) -> Tensor:
    """Returns the inner products of rows `[n, P]` with a vector `[P]`, `[n]`, float64, host.

    Finite wherever both are: the product of two long float32 vectors would overflow.
    """
    scale = vector.abs().max() if vector.numel() else vector.new_zeros(())
    unit = vector / torch.where(scale > 0, scale, 1.0)
    return (rows @ unit).cpu().double() * scale.cpu().double()
