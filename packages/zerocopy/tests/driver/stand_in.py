"""Lets torch without CUDA load onto the emulated devices: a device's tensor is one of the host over its memory."""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any

import torch

from zerocopy import _torch_private
from zerocopy._device import loading, memory
from zerocopy._device.driver import driver
from zerocopy._segment.format import round_up

_own: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # by address: memory of this process alone


def _view(address: int, nbytes: int, owner: Any) -> torch.Tensor:
    view = (ctypes.c_ubyte * nbytes).from_address(address)
    view.owner = owner  # the tensor keeps the view
    return torch.frombuffer(view, dtype=torch.uint8)


def _storage_over(shared: Any, place: torch.device) -> torch.UntypedStorage:
    described = shared.__cuda_array_interface__
    return _view(described["data"][0], described["shape"][0], shared).untyped_storage()


class _Own:
    """Memory of a device that this process does not share."""


def _free(cuda: Any, device: int, address: int, nbytes: int) -> None:
    with cuda.context(device):
        cuda.unmap(address, nbytes)


def _empty_on(tensor: torch.Tensor, place: torch.device) -> torch.Tensor:
    cuda = driver()
    device = cuda.device(place.index)
    with cuda.context(device):
        nbytes = round_up(tensor.nbytes, cuda.granularity(device))
        handle = cuda.create(device, nbytes)
        address = cuda.map(handle, nbytes)
        cuda.release(handle)
        cuda.allow(device, address, nbytes, write=True)
    own = _own[address] = _Own()
    weakref.finalize(own, _free, cuda, device, address, nbytes)
    shape = torch.empty_like(tensor, device="meta")
    there = torch.empty((0,), dtype=tensor.dtype)
    return there.set_(_view(address, tensor.nbytes, own).untyped_storage(), 0, shape.shape, shape.stride())


def _copied(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if func is torch.ops.aten._to_copy.default and (memory.copy_at(args[0].data_ptr()) or args[0].data_ptr() in _own):
        return args[0].detach()  # it is on the device already
    kwargs = kwargs | {"device": torch.device("cpu")} if kwargs.get("device") is not None else kwargs
    return func(*args, **kwargs)


def install() -> None:
    """Change this process; one that is forked from it is refused, as by torch."""
    mine = os.getpid()
    torch.cuda.is_available = lambda: True
    torch.cuda.current_device = lambda: 0
    torch.cuda.init = torch.cuda._lazy_init = torch.cuda.empty_cache = lambda: None
    _torch_private.cuda_was_forked = lambda: os.getpid() != mine
    loading.storage_over = memory.storage_over = _storage_over
    loading.empty_on = _empty_on
    loading.current_stream = lambda place: 0
    memory.streams_of = lambda place: [0]
    loading.copied = _copied
