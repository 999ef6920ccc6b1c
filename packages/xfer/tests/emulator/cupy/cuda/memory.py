"""`cupy.cuda.memory`: memory objects and pools over the emulated machine."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from cupy import _machine
from cupy._machine import CUDARuntimeError, machine
from cupy.cuda import _state

CHUNK = 64 << 10


class OutOfMemoryError(MemoryError):
    """The device has no memory left."""


class BaseMemory:
    """Memory on a device."""

    ptr, size, device_id = 0, 0, 0

    @property
    def device(self) -> Any:
        """The device."""
        from cupy.cuda import Device

        return Device(self.device_id)


def _malloc(size: int, kind: str) -> int:
    try:
        return machine.malloc(size, kind)
    except CUDARuntimeError as error:
        if error.status == 2:
            raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes") from error
        raise


class Memory(BaseMemory):
    """Memory of cudaMalloc."""

    kind = "device"

    def __init__(self, size: int) -> None:
        self.size, self.device_id = size, machine.device
        self.ptr = _malloc(size, self.kind) if size else 0

    def __del__(self) -> None:
        if getattr(self, "ptr", 0) and not _state.ending:
            machine.free(self.ptr)


class ManagedMemory(Memory):
    """Memory of cudaMallocManaged, which has no IPC handle."""

    kind = "managed"


class ExpandableMemory(Memory):
    """Memory of cuMemCreate, as torch's expandable segments use, which has no IPC handle of the old kind."""

    kind = "vmm"


class MemoryAsync(Memory):
    """Memory of cudaMallocAsync, freed in the order of its stream."""

    kind = "async"

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._stream = _state.current_stream().ptr

    def __del__(self) -> None:
        if getattr(self, "ptr", 0) and not _state.ending:
            machine.free(self.ptr, waits=self._stream)


class UnownedMemory(BaseMemory):
    """Memory that belongs to something else, which stays alive."""

    def __init__(self, ptr: int, size: int, owner: object, device_id: int = -1) -> None:
        region = machine.find(ptr)
        self.ptr, self.size, self._owner = ptr, size, owner
        self.device_id = device_id if device_id >= 0 else region.device


class PooledMemory(BaseMemory):
    """A part of a chunk, which goes back to the pool (rule 10)."""

    def __init__(self, pool: Any, key: Any, chunk: Memory, offset: int, size: int) -> None:
        self.ptr, self.size, self.device_id = chunk.ptr + offset, size, chunk.device_id
        self._pool, self._key, self._chunk, self._offset = weakref.ref(pool), key, chunk, offset

    def __del__(self) -> None:
        pool = self._pool()
        if pool is not None and not _state.ending and _machine.os.getpid() == machine.pid:
            pool.give_back(self._key, self._chunk, self._offset, self.size, self.ptr)


class MemoryPointer:
    """A place in memory."""

    def __init__(self, mem: BaseMemory, offset: int) -> None:
        self.mem, self.ptr, self.device_id = mem, mem.ptr + offset, mem.device_id

    @property
    def device(self) -> Any:
        """The device."""
        return self.mem.device

    def copy_to_host(self, pointer: int, size: int) -> None:
        """Copy on the legacy default stream."""
        machine.copy(pointer, self.ptr, size)

    def copy_from_host(self, pointer: int, size: int) -> None:
        """Copy on the legacy default stream."""
        machine.copy(self.ptr, pointer, size)

    def copy_from_device_async(self, source: MemoryPointer, size: int, stream: Any = None) -> None:
        """Copy on a stream."""
        machine.copy(self.ptr, source.ptr, size, (stream or _state.current_stream()).ptr)

    def copy_to_host_async(self, pointer: int, size: int, stream: Any = None) -> None:
        """Copy on a stream."""
        machine.copy(pointer, self.ptr, size, (stream or _state.current_stream()).ptr)

    def copy_from_host_async(self, pointer: int, size: int, stream: Any = None) -> None:
        """Copy on a stream."""
        machine.copy(self.ptr, pointer, size, (stream or _state.current_stream()).ptr)


class MemoryPool:
    """Memory by stream and size; small requests share a chunk, and what was freed last is used first."""

    def __init__(self, allocator: Any = None) -> None:
        self._new = allocator
        self._free: dict[Any, list[tuple[Memory, int, int]]] = {}
        self._used = 0

    def malloc(self, size: int) -> MemoryPointer:
        """Return memory for the current device and stream."""
        size = -(-size // 512) * 512
        if not size:
            return MemoryPointer(Memory(0), 0)
        with machine.lock:
            key = machine.device, _state.current_stream().ptr
            free = self._free.setdefault(key, [])
            index = next((i for i in reversed(range(len(free))) if free[i][2] >= size), None)
            if index is None:
                chunk = self._chunk(max(size, CHUNK))
                free.append((chunk, 0, max(size, CHUNK)))
                index = len(free) - 1
            chunk, offset, left = free.pop(index)
            if left > size:
                free.append((chunk, offset + size, left - size))
            self._used += size
            return MemoryPointer(PooledMemory(self, key, chunk, offset, size), 0)

    def _chunk(self, size: int) -> Any:
        try:
            return self._new(size).mem if self._new else Memory(size)
        except OutOfMemoryError:
            self.free_all_blocks()
            return self._new(size).mem if self._new else Memory(size)

    def give_back(self, key: Any, chunk: Memory, offset: int, size: int, pointer: int) -> None:
        """Take a part back: its stream is past it, so that the memory changes now."""
        with machine.lock:
            stream = machine.streams.get(key[1] if key[1] > 2 else -1 - key[0])
            if stream is not None:
                machine.run(stream.tail)
            machine.view(pointer, (size,), np.uint8)[:] = _machine.POISON
            self._free[key].append((chunk, offset, size))
            self._used -= size

    def used_bytes(self) -> int:
        """Count what is in use."""
        return self._used

    def free_all_blocks(self, stream: Any = None) -> None:
        """Give chunks back to the device of which no part is in use."""
        with machine.lock:
            for free in self._free.values():
                whole: dict[int, int] = {}
                for chunk, _, size in free:
                    whole[id(chunk)] = whole.get(id(chunk), 0) + size
                free[:] = [part for part in free if whole[id(part[0])] < part[0].size]


class MemoryAsyncPool:
    """A pool of the driver's."""

    def malloc(self, size: int) -> MemoryPointer:
        """Return memory that has no IPC handle."""
        return MemoryPointer(MemoryAsync(max(size, 1)), 0)


def malloc_managed(size: int) -> MemoryPointer:
    """Return managed memory."""
    return MemoryPointer(ManagedMemory(max(size, 1)), 0)


def malloc_expandable(size: int) -> MemoryPointer:
    """Return memory as torch's expandable segments are made of."""
    return MemoryPointer(ExpandableMemory(max(size, 1)), 0)


class PinnedMemory:
    """Page-locked host memory of its own."""

    def __init__(self, size: int) -> None:
        self.ptr, self.size = machine.host_alloc(size), size

    def __int__(self) -> int:
        return self.ptr

    def __del__(self) -> None:
        machine.pinned.pop(self.ptr, None)
