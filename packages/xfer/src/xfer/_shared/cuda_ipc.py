"""Shares CUDA arrays between processes: writes the record that goes into a pool slot, and opens it; needs CuPy.

Pools of device memory hand out many arrays from one allocation, and CUDA's handle names the allocation, so the record
also holds the array's offset from the base (else two arrays of one chunk would be mistaken for each other). The
slot's lease keeps the producer's array: the producer releases it when the kernel reports that no reader is left.
"""

from __future__ import annotations

import os
import struct
from typing import Any

import numpy as np

from xfer._convert.interchange import library_of
from xfer._convert.move import load_cupy
from xfer._shared import dtypes
from xfer._shared.handle import HEADER, parse, read_meta
from xfer.errors import DeviceUnavailableError, StaleHandleError

RECORD = struct.Struct("<64s16sQQIQ")  # CUDA IPC handle, device UUID, offset, length, process, pointer in that process


def describe(array: Any) -> tuple[bytes, np.dtype[Any], tuple[int, ...], object]:
    """Return the record of a device array, its dtype and shape, and what has to stay alive with it.

    Raises:
        DeviceUnavailableError: There is no CUDA device or no CuPy.
    """
    cupy = load_cupy()
    dtype: np.dtype[Any] | None = None
    if library_of(array) == "torch":
        array = array.detach().contiguous()
        name = str(array.dtype).removeprefix("torch.")
        if name == "bfloat16" or name.startswith("float8_"):
            import torch

            dtype = dtypes.decode(f"{dtypes.ML_PREFIX}{name}".encode())
            array = array.view(torch.int16 if name == "bfloat16" else torch.uint8)
    device_array = cupy.ascontiguousarray(cupy.from_dlpack(array) if library_of(array) != "cupy" else array)
    with device_array.device:
        cupy.cuda.get_current_stream().synchronize()
        kept = device_array if device_array.size else cupy.zeros(1, np.uint8)  # no elements have no address
        pointer = kept.data.ptr
        base, length = _range_of(pointer)
        handle = cupy.cuda.runtime.ipcGetMemHandle(base)
        record = RECORD.pack(handle, _uuid(kept.device.id), pointer - base, length, os.getpid(), pointer)
    return record, dtype or device_array.dtype, device_array.shape, kept


def open_record(record: np.ndarray[Any, Any], raw: bytes) -> Any:
    """Return the CuPy array behind a leased record; the lease lives as long as the array.

    Raises:
        DeviceUnavailableError: The producer's device is not visible here.
        StaleHandleError: The producer's allocation is gone.
    """
    cupy = load_cupy()
    handle, uuid, offset, _, pid, pointer = RECORD.unpack(record.tobytes())
    fields = parse(raw)
    shape, token = read_meta(raw[HEADER.size : -4], fields.ndim)
    dtype = dtypes.decode(token)
    if dtype.type.__module__.split(".")[0] == "ml_dtypes":
        dtype = np.dtype(f"u{dtype.itemsize}")  # CuPy has no such dtype: the bits, for the caller to view
    count = int(np.prod(shape, dtype=np.int64))
    index = _device_of_uuid(uuid)
    with cupy.cuda.Device(index):
        if pid == os.getpid():
            owner: Any = record  # CUDA refuses to open its own handle: the memory is here already
        else:
            owner = _Opened(cupy, handle, record)
            pointer = owner.base + offset
        memory = cupy.cuda.UnownedMemory(pointer, max(count * dtype.itemsize, 1), owner, index)
        return cupy.ndarray(shape, dtype, cupy.cuda.MemoryPointer(memory, 0))


class _Opened:
    """One opening of another process's allocation, closed when the last array over it is gone."""

    def __init__(self, cupy: Any, handle: bytes, lease: np.ndarray[Any, Any]) -> None:
        self._runtime, self._lease = cupy.cuda.runtime, lease
        try:
            self.base = self._runtime.ipcOpenMemHandle(handle, self._runtime.cudaIpcMemLazyEnablePeerAccess)
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise StaleHandleError(f"the device memory behind this handle cannot be opened: {error}") from error

    def __del__(self) -> None:
        if hasattr(self, "base"):
            self._runtime.ipcCloseMemHandle(self.base)


def _range_of(pointer: int) -> tuple[int, int]:
    """Return base and length of the allocation that a pointer lies in (cuMemGetAddressRange)."""
    import ctypes

    driver = ctypes.CDLL("libcuda.so.1")
    base, length = ctypes.c_uint64(), ctypes.c_size_t()
    status = driver.cuMemGetAddressRange_v2(ctypes.byref(base), ctypes.byref(length), ctypes.c_uint64(pointer))
    if status:
        raise DeviceUnavailableError(f"the CUDA driver does not know the address {pointer:#x} (error {status})")
    return base.value, length.value


def _uuid(index: int) -> bytes:
    raw: bytes = load_cupy().cuda.runtime.getDeviceProperties(index)["uuid"]
    return bytes(raw)[:16].ljust(16, b"\0")


def _device_of_uuid(uuid: bytes) -> int:
    for index in range(load_cupy().cuda.runtime.getDeviceCount()):
        if _uuid(index) == uuid:
            return index
    raise DeviceUnavailableError(f"the producer's device {uuid.hex()} is not visible to this process")
