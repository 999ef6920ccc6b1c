"""`cupy.cuda` over the emulated machine."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from cupy._machine import CUDARuntimeError, machine
from cupy.cuda import _state, memory, runtime
from cupy.cuda._state import current_stream as get_current_stream
from cupy.cuda.memory import (
    ManagedMemory,
    Memory,
    MemoryAsyncPool,
    MemoryPointer,
    MemoryPool,
    PinnedMemory,
    UnownedMemory,
    malloc_managed,
)

__all__ = [
    "Device",
    "Event",
    "ManagedMemory",
    "Memory",
    "MemoryAsyncPool",
    "MemoryPointer",
    "MemoryPool",
    "PinnedMemory",
    "Stream",
    "UnownedMemory",
    "alloc",
    "get_current_stream",
    "is_available",
    "malloc_managed",
    "memory",
    "runtime",
    "set_allocator",
]


def is_available() -> bool:
    """Return whether there is a device."""
    try:
        return runtime.getDeviceCount() > 0
    except CUDARuntimeError:
        return False


class Device:
    """A device; as a context, the current one."""

    def __init__(self, device: Any = None) -> None:
        self.id = machine.device if device is None else int(device)

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return self.id

    def __enter__(self) -> Device:
        before = machine.device
        if before != self.id:
            machine.set_device(self.id)
        machine.local.__dict__.setdefault("stack", []).append(before)
        return self

    def __exit__(self, *exc: object) -> None:
        before = machine.local.stack.pop()
        if before != machine.device:
            machine.set_device(before)

    def use(self) -> Device:
        """Make it the current device."""
        machine.set_device(self.id)
        return self

    def synchronize(self) -> None:
        """Wait for all its work."""
        machine.calls["deviceSynchronize"] += 1
        machine.check()
        machine.synchronize(self.id)


class Stream:
    """A stream; as a context, the current one."""

    null: Stream

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.ptr = 0 if null else machine.new_stream(non_blocking)
        self.device_id = -1 if null else machine.device

    def __enter__(self) -> Stream:
        if self.device_id not in (-1, machine.device):
            raise RuntimeError("the stream was made on another device")
        stack = _state.local.__dict__.setdefault("stack", [])
        stack.append((machine.device, _state.streams().get(machine.device)))
        _state.streams()[machine.device] = self
        return self

    def __exit__(self, *exc: object) -> None:
        device, before = _state.local.stack.pop()
        _state.streams()[device] = before or Stream.null

    def use(self) -> Stream:
        """Make it the current stream."""
        _state.streams()[machine.device] = self
        return self

    def synchronize(self) -> None:
        """Wait for its work."""
        runtime.streamSynchronize(self.ptr)

    def record(self, event: Any = None) -> Any:
        """Record an event."""
        event = event or Event()
        machine.record(event.ptr, self.ptr)
        return event

    def wait_event(self, event: Any) -> None:
        """Let later work wait for an event."""
        machine.wait_event(self.ptr, event.ptr)

    def __cuda_stream__(self) -> tuple[int, int]:
        """Return version and address."""
        return 0, self.ptr


Stream.null = Stream(null=True)


class Event:
    """An event."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        if interprocess and not disable_timing:
            raise ValueError("Timing must be disabled for interprocess events")
        self.ptr = machine.new_event(block * 1 | disable_timing * 2 | interprocess * 4)

    @property
    def done(self) -> bool:
        """Whether its work is done."""
        return machine.query_event(self.ptr)

    def record(self, stream: Any = None) -> None:
        """Record it on a stream."""
        machine.record(self.ptr, (stream or get_current_stream()).ptr)

    def synchronize(self) -> None:
        """Wait for it."""
        machine.sync_event(self.ptr)

    def __del__(self) -> None:
        if not _state.ending and hasattr(self, "ptr"):
            machine.destroy_event(self.ptr)


_default_pool = MemoryPool()


def alloc(size: int) -> MemoryPointer:
    """Return memory of the current allocator."""
    return (_state.allocator or _default_pool.malloc)(size)


def set_allocator(allocator: Any = None) -> None:
    """Choose the allocator."""
    _state.allocator = allocator


class _Driver:
    """The functions of libcuda.so.1 that xfer calls."""

    @staticmethod
    def cuMemGetAddressRange_v2(base: Any, length: Any, pointer: Any) -> int:
        """Find the allocation of a pointer."""
        if not getattr(machine.local, "context", False):
            return 201  # rule 11
        region = machine.find(pointer.value)
        if region is None:
            return 1
        base._obj.value, length._obj.value = region.base, region.size
        return 0


_cdll = ctypes.CDLL


def _load(name: Any = None, *args: Any, **options: Any) -> Any:
    return _Driver if name == "libcuda.so.1" else _cdll(name, *args, **options)


def _forget_driver() -> None:
    if "xfer._shared.cuda_ipc" in sys.modules:
        sys.modules["xfer._shared.cuda_ipc"]._driver.cache_clear()


def install() -> None:
    """Let ctypes find the emulated driver."""
    ctypes.CDLL = _load  # type: ignore[misc,assignment]
    _forget_driver()


def remove() -> None:
    """Undo `install`, and end the machine as a process's end does."""
    ctypes.CDLL = _cdll  # type: ignore[misc]
    _forget_driver()
    _end()


def _end() -> None:
    """End the machine; `sitecustomize` calls it after all other exit handlers, as the C library does CUDA's."""
    if not _state.ending:
        _state.ending = True
        machine.end()


install()
