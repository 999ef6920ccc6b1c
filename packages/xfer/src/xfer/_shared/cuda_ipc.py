"""Shares CUDA arrays between processes: writes the record that goes into a pool slot, and opens it; needs CuPy.

Pools of device memory hand out many arrays from one allocation, and CUDA's handle names the allocation, so the record
also holds the array's offset from the base (else two arrays of one chunk would be mistaken for each other). The
slot's lease keeps the producer's array: the producer releases it when the kernel reports that no reader is left.

The producer waits until its device has done all queued work, or, if it names a stream, hands over an event that the
reader waits for. The reader's lease ends when its own device has done all work that was queued while it had the array.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import struct
import weakref
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from xfer._convert.interchange import Library, device_of, library_of, plain_tensor
from xfer._convert.move import load_cupy, move
from xfer._shared import dtypes
from xfer._shared.cuda_closer import CLOSER
from xfer._shared.handle import FORTRAN, HEADER, parse, read_meta
from xfer.errors import BudgetExceededError, DeviceUnavailableError, StaleHandleError, UnsupportedDtypeError

# CUDA IPC handles of memory and event, device UUID, offset, process, pointer in that process, torch's, with an event
_RECORD = struct.Struct("<64s64s16sQIQBB")
_CARRIERS = {1: "uint8", 2: "int16"}

_own_events: weakref.WeakValueDictionary[bytes, Any] = weakref.WeakValueDictionary()


class Kept(NamedTuple):
    """What has to stay alive with a slot, and the bytes of the array."""

    nbytes: int
    array: object
    event: object


class Described(NamedTuple):
    """A device array that is ready to be shared."""

    record: bytes
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    kept: Kept


def describe(array: Any, stream: Any = None) -> Described:
    """Return the record of a device array, and what has to stay alive with it.

    Args:
        array: A CuPy array or a torch tensor on a CUDA device.
        stream: The stream that the array was written on; None waits for all work of the device.

    Raises:
        DeviceUnavailableError: There is no CUDA device or no CuPy, or CUDA IPC does not work here.
        BudgetExceededError: The array must be copied to be shared, and the device has no room.
    """
    cupy = load_cupy()
    device = device_of(array)
    is_torch, dtype = library_of(array) == "torch", None
    if is_torch:
        array, dtype = plain_tensor(array)
    with cupy.cuda.Device(int(device.partition(":")[2])):
        runtime, current = cupy.cuda.runtime, cupy.cuda.get_current_stream()
        runtime.setDevice(runtime.getDevice())  # a new thread has no context yet, and the driver's calls need one
        event = None
        if stream is not None:
            event = cupy.cuda.Event(disable_timing=True, interprocess=True)
            runtime.eventRecord(event.ptr, pointer_of(stream))
            runtime.streamWaitEvent(current.ptr, event.ptr)
        placed = array if library_of(array) == "cupy" else cupy.from_dlpack(array)
        if not (placed.flags.c_contiguous or placed.flags.f_contiguous):
            placed = cupy.ascontiguousarray(placed)
        kept = placed if placed.size else cupy.zeros(1, np.uint8)  # no elements have no address
        handle, offset, kept = _export(cupy, kept)
        event_handle = b""
        if event is None:
            cupy.cuda.Device().synchronize()
        else:
            runtime.eventRecord(event.ptr, current.ptr)
            event_handle = runtime.ipcGetEventHandle(event.ptr)
            _own_events[event_handle] = event
        record = _RECORD.pack(
            handle, event_handle, _uuid(kept.data.device_id), offset, os.getpid(), kept.data.ptr, is_torch,
            event is not None,
        )  # fmt: skip
    fortran = placed.flags.f_contiguous and not placed.flags.c_contiguous
    return Described(record, dtype or placed.dtype, placed.shape, fortran, Kept(placed.nbytes, kept, event))


def can_share(array: Any) -> bool:
    """Return whether CUDA has a handle for the memory of a CuPy array, so that it need not be copied to be shared."""
    cupy = load_cupy()
    try:
        cupy.cuda.runtime.ipcGetMemHandle(_base_of(array.data.ptr))
    except cupy.cuda.runtime.CUDARuntimeError:
        return False
    return True


def _export(cupy: Any, array: Any) -> tuple[bytes, int, Any]:
    """Return the handle, the offset, and the array or its copy in memory that has a handle."""
    runtime = cupy.cuda.runtime
    try:
        base = _base_of(array.data.ptr)
        return runtime.ipcGetMemHandle(base), array.data.ptr - base, array
    except runtime.CUDARuntimeError:
        pass  # an expandable segment, managed memory, or memory of cudaMallocAsync
    try:
        memory = cupy.cuda.MemoryPointer(cupy.cuda.Memory(array.nbytes), 0)
        handle = runtime.ipcGetMemHandle(memory.ptr)
        memory.copy_from_device_async(array.data, array.nbytes)
        cupy.cuda.get_current_stream().synchronize()  # memory of no pool must not be freed while the copy is queued
        return handle, 0, cupy.ndarray(array.shape, array.dtype, memory, order="C" if array.flags.c_contiguous else "F")
    except cupy.cuda.memory.OutOfMemoryError as error:
        raise BudgetExceededError(
            f"the array's memory has no CUDA IPC handle and must be copied, but the device has no {array.nbytes} bytes",
            array.nbytes,
            0,
        ) from error
    except runtime.CUDARuntimeError as error:
        raise DeviceUnavailableError(
            f"CUDA arrays cannot be shared between processes here ({error}); put a copy on the host: "
            "pool.put(xfer.move(array, 'cpu'))"
        ) from error


def open_record(record: np.ndarray[Any, Any], raw: bytes, as_: Library, stream: Any = None) -> Any:
    """Return the array behind a leased record; the lease lives as long as the array and the work that uses it.

    Args:
        record: The record; its memory is leased.
        raw: The bytes of the handle.
        as_: "torch" for a tensor; otherwise a tensor where the producer put one, or a CuPy array.
        stream: The stream that waits for the producer's event; None waits here.

    Raises:
        DeviceUnavailableError: The producer's device cannot be reached from here.
        StaleHandleError: The producer's allocation is gone.
        UnsupportedDtypeError: CuPy has no such dtype.
    """
    cupy = load_cupy()
    handle, event, uuid, offset, pid, pointer, from_torch, has_event = _RECORD.unpack(record.tobytes())
    fields = parse(raw)
    shape, token = read_meta(raw[HEADER.size : -4], fields.ndim)
    dtype = dtypes.decode(token)
    as_torch = as_ == "torch" or (from_torch and importlib.util.find_spec("torch") is not None)
    is_special = dtype.type.__module__.split(".")[0] == "ml_dtypes"
    plain = np.dtype(_CARRIERS[dtype.itemsize]) if as_torch and is_special else dtype
    with cupy.cuda.Device(_device_of_uuid(uuid)):
        index = cupy.cuda.runtime.getDevice()
        base = None if pid == os.getpid() else _open(cupy, handle)  # CUDA refuses to open its own handle
        owner = _Opened(index, base, record)
        memory = cupy.cuda.UnownedMemory(
            pointer if base is None else base + offset, max(fields_size(shape, plain), 1), owner, index
        )
        if has_event:
            _wait(cupy, event, pid, stream)
        try:
            order = "F" if fields.flags & FORTRAN else "C"
            array = cupy.ndarray(shape, plain, cupy.cuda.MemoryPointer(memory, 0), order=order)
        except (TypeError, ValueError) as error:
            raise UnsupportedDtypeError(f"this CuPy has no {dtype}: get it with as_='torch'") from error
    if not as_torch:
        return array
    tensor = move(array, "torch")
    return tensor.view(getattr(importlib.import_module("torch"), dtype.name)) if is_special else tensor


def fields_size(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Return the bytes of an array."""
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def pointer_of(stream: Any) -> int:
    """Return the address of a CUDA stream of any library.

    Raises:
        TypeError: It is no stream.
    """
    if isinstance(stream, int):
        return stream
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for name in ("ptr", "cuda_stream"):
        if isinstance(getattr(stream, name, None), int):
            return int(getattr(stream, name))
    raise TypeError(f"got stream={stream!r}, want a stream of CuPy or torch, or its address")


class _Opened:
    """One use of another process's allocation, or of our own: it keeps the lease."""

    def __init__(self, index: int, base: int | None, lease: np.ndarray[Any, Any]) -> None:
        self._index, self._base, self._lease, self._pid = index, base, lease, os.getpid()
        CLOSER.start()

    def __del__(self) -> None:
        if os.getpid() == self._pid:  # a forked child only drops its lease: it cannot use CUDA
            CLOSER.close_later(self._index, self._base, self._lease)


def _open(cupy: Any, handle: bytes) -> int:
    runtime = cupy.cuda.runtime
    try:
        return int(runtime.ipcOpenMemHandle(handle, runtime.cudaIpcMemLazyEnablePeerAccess))
    except runtime.CUDARuntimeError as error:
        if error.status == 217:  # peer access is not supported between the two devices
            raise DeviceUnavailableError(f"the producer's device cannot be reached from this one: {error}") from error
        raise StaleHandleError(f"the device memory behind this handle cannot be opened: {error}") from error


def _wait(cupy: Any, handle: bytes, pid: int, stream: Any) -> None:
    """Wait for the producer's event, or let a stream wait for it."""
    runtime = cupy.cuda.runtime
    ours = _own_events.get(handle) if pid == os.getpid() else None
    event = ours.ptr if ours is not None else runtime.ipcOpenEventHandle(handle)
    try:
        if stream is None:
            runtime.eventSynchronize(event)
        else:
            runtime.streamWaitEvent(pointer_of(stream), event)
    finally:
        if ours is None:
            runtime.eventDestroy(event)


def _base_of(pointer: int) -> int:
    """Return the base of the allocation that a pointer lies in (cuMemGetAddressRange)."""
    base, length = ctypes.c_uint64(), ctypes.c_size_t()
    status = _driver().cuMemGetAddressRange_v2(ctypes.byref(base), ctypes.byref(length), ctypes.c_uint64(pointer))
    if status:
        raise DeviceUnavailableError(f"the CUDA driver does not know the address {pointer:#x} (error {status})")
    return base.value


@lru_cache(maxsize=1)
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


@lru_cache(maxsize=64)
def _uuid(index: int) -> bytes:
    raw: bytes = load_cupy().cuda.runtime.getDeviceProperties(index)["uuid"]
    return bytes(raw)[:16].ljust(16, b"\0")


def _device_of_uuid(uuid: bytes) -> int:
    """Return the device of a UUID; the current one where it is not visible, which can open its memory all the same."""
    runtime = load_cupy().cuda.runtime
    for index in range(runtime.getDeviceCount()):
        if _uuid(index) == uuid:
            return index
    return int(runtime.getDevice())
