"""Lets torch without CUDA load onto the emulated devices: a device's tensor is one of the host over its memory."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import torch

from zerocopy._device import loading, memory


def _storage_over(shared: Any, place: torch.device) -> torch.UntypedStorage:
    described = shared.__cuda_array_interface__
    view = (ctypes.c_ubyte * described["shape"][0]).from_address(described["data"][0])
    view.owner = shared  # the tensor keeps the view
    return torch.frombuffer(view, dtype=torch.uint8).untyped_storage()


def _copied(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if func is torch.ops.aten._to_copy.default and memory.copy_at(args[0].data_ptr()):
        return args[0].detach()  # it is on the device already
    kwargs = kwargs | {"device": torch.device("cpu")} if kwargs.get("device") is not None else kwargs
    return func(*args, **kwargs)


def install() -> None:
    """Change this process; one that is forked from it is refused, as by torch."""
    mine = os.getpid()
    torch.cuda.is_available = lambda: True
    torch.cuda.current_device = lambda: 0
    torch.cuda.init = torch.cuda._lazy_init = torch.cuda.empty_cache = lambda: None
    memory.cuda_was_forked = lambda: os.getpid() != mine
    loading.storage_over = _storage_over
    loading.copied = _copied
