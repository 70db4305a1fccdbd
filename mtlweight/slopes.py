"""The slopes of many losses along one direction: their inner products, without a pass for each."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle

from mtlweight.distributed import sum_over_ranks
from mtlweight.look_ahead import Surroundings
from mtlweight.task_gradients.passes import backward_pass, hooks_at_rest


class BackwardSlopes:
    r"""The slopes of losses that are there already: their backward pass is differentiated again.

    $J^\top u$ is linear in u, so the derivative of $\langle J^\top u, v \rangle$ by u is $J v$.

    Args:
        losses: N numbers, attached.
        start: u, what the losses are summed with, `[N]`.
        around: The leaves behind the losses.

    Attributes:
        rate: $J^\top u$, the gradient of that sum, `[P]`.

    Raises:
        RuntimeError: A layer can't be differentiated twice.
    """

    def __init__(self, losses: Tensor, start: Tensor, around: Surroundings) -> None:
        self.around = around
        self.start = start.detach().clone().requires_grad_()
        try:
            with hooks_at_rest(around.leaves):
                self._rates = torch.autograd.grad(
                    losses, around.leaves, self.start, create_graph=True, allow_unused=True
                )
        except RuntimeError as error:
            raise _once_only(error) from error
        self.rate = around.joined([x if x is None else x.detach() for x in self._rates])

    def along(self, v: Tensor) -> Tensor:
        """Returns the slopes along a direction `[P]`, `[N]`."""
        pairs = [
            (x, piece.to(x.dtype))
            for x, piece in zip(self._rates, self.around.split(v), strict=True)
            if x is not None and x.requires_grad
        ]
        slopes: Tensor | None = None
        try:
            if pairs:
                slopes = torch.autograd.grad(
                    [x for x, _ in pairs],
                    self.start,
                    [piece for _, piece in pairs],
                    allow_unused=True,
                )[0]
        except RuntimeError as error:
            raise _once_only(error) from error
        start = self.start.detach()
        slopes = torch.zeros_like(start) if slopes is None else slopes
        # A layer whose backward autograd can't see into would leave a part out in silence.
        if _disagree(self.rate, v, start, slopes):
            raise _once_only("a part of its gradient is missing from the second derivative")
        return slopes


class ForwardSlopes:
    """The slopes of losses that are still to be computed: their forward pass carries them along.

    Args:
        around: The parameters.
        v: The direction, `[P]`.
    """

    def __init__(self, around: Surroundings, v: Tensor) -> None:
        self.around = around
        self.v = v
        self._read: list[tuple[Tensor, Tensor, Tensor]] = []
        self._hooks: list[RemovableHandle] = []

    @property
    def used(self) -> bool:
        """Whether the slopes of any losses were read."""
        return bool(self._read)

    @contextmanager
    def carried(self, networks: Sequence[nn.Module]) -> Iterator[None]:
        """Has the parameters of networks carry their pieces of v; the modules are as before after.

        What stands in for a parameter is a view of it: gradients arrive at the parameter itself.

        Raises:
            RuntimeError: A layer has no forward mode.
        """
        moving = self._moving()
        places = [
            (module._parameters, name, parameter)
            for network in networks
            for module in network.modules()
            for name, parameter in module._parameters.items()
            if id(parameter) in moving
        ]
        # Fused attention has no forward mode; the plain one computes the same.
        with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
            with warnings.catch_warnings():  # the first one compiles what PyTorch itself deprecates
                warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
                duals = {
                    key: forward_ad.make_dual(leaf, piece.to(leaf))  # type: ignore[no-untyped-call]
                    for key, (leaf, piece) in moving.items()
                }
            try:
                for slots, name, parameter in places:
                    slots[name] = duals[id(parameter)]
                yield
            except (NotImplementedError, RuntimeError) as error:
                if "forward AD" in str(error) or "forward mode AD" in str(error):
                    raise _no_forward_mode(error) from error
                raise
            finally:
                for hook in self._hooks:
                    hook.remove()
                for slots, name, parameter in places:
                    slots[name] = parameter

    def read(self, losses: Tensor, start: Tensor) -> Tensor:
        """Returns the slopes of losses `[N]`, `[N]`; `start` is what `check` sums them with.

        Raises:
            ValueError: None of the losses carries one.
        """
        slopes: Tensor | None = forward_ad.unpack_dual(losses).tangent  # type: ignore[no-untyped-call]
        if slopes is None:
            raise ValueError(
                "No loss of this step was computed by a network that `directed` was given while "
                "its block was open: give it the networks of the tasks, and compute the losses "
                "inside the block, with gradients."
            )
        found = slopes.detach().clone()
        hook = losses.register_hook(_refuse_inside)  # type: ignore[no-untyped-call]
        self._hooks.append(hook)
        self._read.append((losses, start.detach(), found))
        return found

    def check(self) -> None:
        """Compares the slopes that were read with a backward pass; the graph stays to be walked.

        A layer may pass on less than its losses' gradient, or more: what `torch.no_grad` computes
        carries slopes that no gradient has.

        Raises:
            RuntimeError: They are not the slopes of the losses, or that pass fails.
        """
        for losses, start, slopes in self._read:
            try:
                found = backward_pass([losses], [start], self.around.leaves)
            except RuntimeError as error:
                raise _no_forward_mode(error) from error
            if _disagree(self.around.joined(found), self.v, start, slopes):
                raise _no_forward_mode(
                    "the slopes that the forward pass carries are not those of the backward pass. "
                    "What no gradient is to flow through has to be detached by `.detach()`; "
                    "`torch.no_grad()` alone does not stop a slope"
                )

    def _moving(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Returns the parameters that have a part in v: the rest need not carry zeros along."""
        pieces = self.around.split(self.v)
        parts = torch.stack([piece.any() for piece in pieces]).tolist()
        if not any(parts):
            parts = [True] * len(pieces)
        return {
            id(leaf): (leaf, piece)
            for leaf, piece, part in zip(self.around.leaves, pieces, parts, strict=True)
            if part
        }


def unit(v: Tensor) -> Tensor:
    """Returns a vector in length one, whatever the size of its numbers; zeros stay zeros."""
    v = v / torch.where(v.any(), v.abs().max(), 1.0)
    length: Tensor = torch.linalg.vector_norm(v)
    return v / length.clamp_min(1)


def trainable(networks: Sequence[nn.Module]) -> tuple[list[Tensor], Tensor]:
    """Returns what networks train, each once, and a tensor like the vectors of all of it.

    Raises:
        TypeError: One of them is not a module.
        ValueError: They have nothing to train.
    """
    for network in networks:
        if not isinstance(network, nn.Module):
            raise TypeError(
                f"`directed` takes the modules behind the losses, and got "
                f"{type(network).__name__}: write directed(network), or directed(encoder, heads)."
            )
    every = [p for network in networks for p in network.parameters() if p.requires_grad]
    if not every:
        raise ValueError(
            f"The {len(networks)} networks of `directed` have no parameter that requires a "
            "gradient: give it the modules behind the losses."
        )
    double = any(p.dtype == torch.float64 for p in every)
    like = every[0].new_zeros((), dtype=torch.float64 if double else torch.float32)
    return list({id(p): p for p in every}.values()), like


def _refuse_inside(gradient: Tensor) -> None:
    raise RuntimeError(
        "backward() was called inside the block of `directed`, where it would carry slopes along "
        "too: call it after the block."
    )


def _disagree(rate: Tensor, v: Tensor, start: Tensor, slopes: Tensor) -> bool:
    """Tells on every rank whether, on any, the two ways to $u^T J v$ lead apart.

    By more than the rounding of half precision: a fraction of the terms, which may cancel.
    """
    slopes = slopes.to(start)
    lost = (rate @ v - start @ slopes).abs()
    rounding = 2e-3 * rate.norm() * v.norm() + 2e-2 * (start.abs() @ slopes.abs())
    return bool(sum_over_ranks((lost > rounding).sum()))


def _once_only(reason: object) -> RuntimeError:
    return RuntimeError(
        f"SLGrad differentiates the backward pass, and a layer does not let it: {reason}"
    )


def _no_forward_mode(reason: object) -> RuntimeError:
    return RuntimeError(
        f"A layer can't be used inside the block of `directed`: {reason}. Compute the losses and "
        "call the strategy without `directed`, which differentiates the backward pass instead."
    )
