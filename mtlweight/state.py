"""The state of a strategy: complete, strict, and untouched by what is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn


class Rebound(nn.Module):
    """A module whose buffers are rebound at every step: as fast as plain attributes."""

    def __setattr__(self, name: str, value: Any) -> None:
        buffers = self.__dict__.get("_buffers")
        if buffers is not None and name in buffers and isinstance(value, Tensor):
            buffers[name] = value  # as torch does after looking in five other places
        else:
            super().__setattr__(name, value)


class Stateful(Rebound):
    """A module whose state belongs to named tasks.

    Tensors are buffers, rebound and never written in place, so that a graph that is still to be
    walked keeps what it was built with, and putting a state back costs nothing. What is `carried`
    travels in `state_dict()` beside them.

    Attributes:
        tasks: The names of the T tasks.
        step: The number of training calls so far.
        epoch: The number of epochs closed.
    """

    growing: ClassVar[tuple[str, ...]] = ()  # buffers that take their shape from the network
    carried: ClassVar[tuple[str, ...]] = ("step", "epoch")  # state in plain Python; rebound, too
    undone: ClassVar[tuple[str, ...]] = ()  # what else is rebound, and put back after a refusal
    tasks: tuple[str, ...]

    def __init__(self) -> None:
        super().__init__()
        self.step = 0
        self.epoch = 0

    def get_extra_state(self) -> dict[str, Any]:
        """Returns what is saved beside the buffers; see `torch.nn.Module`."""
        whose = {"version": 1, "strategy": type(self).__name__, "tasks": list(self.tasks)}
        return whose | {name: getattr(self, name) for name in self.carried}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Takes back what `get_extra_state` returned."""
        for name in self.carried:
            setattr(self, name, state[name])

    def _plain_now(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in (*self.carried, *self.undone)}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Takes back a saved state, all of it or nothing; see `torch.nn.Module`.

        Raises:
            ValueError: The state belongs to another strategy, or to other tasks.
            RuntimeError: The state has other entries than this strategy.
        """
        with self.undone_if_refused():
            for module in self.modules():  # a load writes into buffers that a graph may hold
                for name, buffer in module._buffers.items():
                    module._buffers[name] = None if buffer is None else buffer.clone()
            return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        saved = state_dict.get(f"{prefix}_extra_state")
        if saved is not None and saved["strategy"] != type(self).__name__:
            raise ValueError(
                f"The state was saved by {saved['strategy']}, and this is {type(self).__name__}: "
                "build the same strategy to go on from it."
            )
        if saved is not None and tuple(saved["tasks"]) != self.tasks:
            raise ValueError(
                f"The state of {type(self).__name__} was saved for the tasks {saved['tasks']}, and "
                f"this strategy has {list(self.tasks)}: build it with the same tasks in the same "
                "order."
            )
        for name in self.growing:
            if (buffer := state_dict.get(prefix + name)) is not None:
                device = getattr(self, name).device
                setattr(self, name, torch.zeros_like(buffer, device=device))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Moves the state to another device, and keeps its precision: weights stay float32."""

        def move(tensor: Tensor) -> Tensor:
            moved: Tensor = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self

    def buffers_now(self) -> list[dict[str, Tensor | None]]:
        """Returns the buffers as they are, to go back to; no copies, since they are rebound."""
        return [dict(module._buffers) for module in _within(self)]

    @contextmanager
    def undone_if_refused(self) -> Iterator[None]:
        """Puts the state back if the body raises."""
        modules, before = list(_within(self)), self.buffers_now()
        plain = [(m, m._plain_now()) for m in modules if isinstance(m, Stateful)]
        try:
            yield
        except BaseException:
            for module, buffers in zip(modules, before, strict=True):
                module._buffers.update(buffers)
            for owner, state in plain:
                owner.__dict__.update(state)
            raise

    def keep_if(self, good: Tensor, before: list[dict[str, Tensor | None]]) -> None:
        """Takes the new buffers only if the flag is true, without asking the device for it."""
        for module, buffers in zip(_within(self), before, strict=True):
            for name, old in buffers.items():
                new = module._buffers[name]
                if old is not None and new is not None and new is not old:
                    module._buffers[name] = torch.where(good, new, old)


def _within(module: nn.Module) -> Iterator[nn.Module]:
    """Yields a module and those within, as `modules()` does, without names to make."""
    yield module
    for child in module._modules.values():
        if child is not None:
            yield from _within(child)
