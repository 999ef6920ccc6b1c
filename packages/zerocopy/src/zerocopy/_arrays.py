"""Numpy arrays as parts of blocks: which bytes an array lies in, and an array over bytes."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np
import torch

_SMALLEST = 1024  # bytes; a smaller array travels inside the skeleton


class ArrayRow(NamedTuple):
    """An array in the skeleton.

    Args:
        block: The block that it lies in.
        offset: Bytes from the start of the block's storage, later of the block, to the array's first element.
        dtype: Its dtype.
        shape: Its shape.
        strides: Its strides in bytes.
        writeable: Whether it may be written.
    """

    block: int
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    writeable: bool

    def over(self, buffer: Any) -> np.ndarray[Any, Any]:
        """Return the array over a block's bytes."""
        array: np.ndarray[Any, Any] = np.ndarray(self.shape, self.dtype, buffer, self.offset, self.strides)
        if not self.writeable:
            array.setflags(write=False)
        return array


def is_shareable(obj: object) -> bool:
    """Return whether an object is an array of plain bytes that is worth a block."""
    return type(obj) is np.ndarray and not obj.dtype.hasobject and obj.nbytes >= _SMALLEST


def span(array: np.ndarray[Any, Any]) -> tuple[int, int]:
    """Return the addresses of an array's first used byte and of the byte after its last."""
    low = high = int(array.__array_interface__["data"][0])
    if array.size:
        for count, stride in zip(array.shape, array.strides, strict=True):
            if stride < 0:
                low += (count - 1) * stride
            else:
                high += (count - 1) * stride
        high += array.itemsize
    return low, high


def storage_of(array: np.ndarray[Any, Any]) -> tuple[torch.UntypedStorage, int, object]:
    """Return the memory that an array is a part of.

    Returns:
        The storage, the storage's address, and the object that owns the memory and must be kept.
    """
    owner: Any = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    if isinstance(owner.base, torch.Tensor):
        storage = owner.base.untyped_storage()
        return storage, storage.data_ptr(), owner.base
    low, high = span(owner)
    first, last = span(array)
    low, high = min(low, first), max(high, last)
    # By address, because torch warns about memory that numpy calls read-only. Nothing is written here.
    raw = (ctypes.c_ubyte * (high - low)).from_address(low)
    return torch.frombuffer(raw, dtype=torch.uint8).untyped_storage(), low, owner
