"""A device that computes on the host, and refuses what would make it wait for an accelerator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("maia:0")  # a kind that no machine has
_aten = torch.ops.aten
_WAITS = {
    _aten._local_scalar_dense,
    _aten.is_nonzero,
    _aten.nonzero,
    _aten.equal,
    _aten.masked_select,
    _aten.bincount,
    _aten.unique_dim,
    _aten._unique2,
    _aten.unique_consecutive,
}


class _OnDevice(Tensor):
    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Any:
        tensor = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="meta",  # a kind that C++ knows
        )
        tensor.held = held
        return tensor

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    def __repr__(self) -> str:
        return f"_OnDevice({list(self.shape)})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat, _ = tree_flatten((args, kwargs))
    there = [x for x in flat if isinstance(x, _OnDevice)]
    here = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, _OnDevice)]
    target = kwargs.get("device")
    packet = func.overloadpacket
    masked = packet in (_aten.index, _aten.index_put, _aten.index_put_) and any(
        x.dtype == torch.bool for x in tree_flatten(args[1])[0] if isinstance(x, Tensor)
    )
    if there and (masked or packet in _WAITS):
        raise AssertionError(f"{func} waits for the device")
    if packet is _aten._to_copy and target is not None:
        if there and torch.device(target).type == "cpu":
            raise AssertionError("a copy to the host waits for the device")
        if here and not kwargs.get("non_blocking"):
            raise AssertionError("a copy from the host that blocks waits for the device")
    elif packet is _aten.copy_:
        assert not (there and here), "a copy between host and device"
    elif there and any(x.ndim for x in here):
        raise AssertionError(f"{func} mixes tensors of host and device")
    # What C++ makes beside a tensor of the device is on "meta".
    on_device = (
        bool(there) if target is None else torch.device(target).type in ("meta", DEVICE.type)
    )
    if on_device and target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    wrappers = {id(x.held): x for x in there}

    def wrap(x: Any) -> Any:
        if not isinstance(x, Tensor) or not on_device:
            return x
        known = wrappers.get(id(x))
        # A lazy conjugate would be lost: what holds it does not know of it.
        return _OnDevice(x.resolve_conj().resolve_neg()) if known is None else known

    inner = tree_map(lambda x: x.held if isinstance(x, _OnDevice) else x, (args, kwargs))
    return tree_map(wrap, func(*inner[0], **inner[1]))


class _Simulated(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Generator(torch.Generator):
    def __new__(cls, device: torch.device | str = "cpu") -> Self:
        return super().__new__(cls, "cpu")

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.of = torch.device(device)

    @property
    def device(self) -> torch.device:
        return self.of


@contextmanager
def simulated() -> Iterator[None]:
    """Within it tensors can be made on `DEVICE` and sent there; nothing else touches it."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad(), _Simulated():
        patch.setattr(Tensor, "pin_memory", _pinned)
        patch.setattr(torch, "Generator", _Generator)
        yield


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.clone()


def to_device(tensor: Tensor) -> Tensor:
    """A copy on the simulated device."""
    return _OnDevice(tensor.clone())


def to_host(tensor: Tensor) -> Tensor:
    """The values of a tensor of the simulated device."""
    assert isinstance(tensor, _OnDevice)
    return tensor.held
