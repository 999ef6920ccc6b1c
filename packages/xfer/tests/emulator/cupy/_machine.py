"""An emulated CUDA runtime: devices in shared files, and streams whose work runs as late as CUDA's documents permit.

A test finds here what a fast GPU hides. Work that is queued on a stream runs only when a documented rule makes
something wait for it. Memory that is freed shows poison at once. The rules, with their sources:

1. A stream runs its work in order. Streams are not ordered with each other except by events and by the legacy default
   stream, which waits for all blocking streams and makes them wait; non-blocking streams take no part in that.
   (CUDA Driver API, "Stream synchronization behavior", "Legacy default stream".)
2. A copy from pageable host memory returns once the memory is staged, not once it has arrived; a copy to the host
   returns when it is complete. A synchronous copy works on the legacy default stream. (CUDA Driver API, "API
   synchronization behavior", "Memcpy". CuPy's `MemoryPointer.copy_*`: "always uses the legacy default stream".)
3. "Any CUDA API call may block or synchronize for various reasons; such behavior is subject to change and undocumented
   behavior should not be relied upon": so freeing and closing wait for nothing. (The same page.)
4. `cudaIpcGetMemHandle` takes the base of an allocation of `cudaMalloc`; other kinds of memory have no such handle.
   A new allocation at an old address has a new handle. (CUDA Runtime API, `cudaIpcGetMemHandle`; CUDA Programming
   Guide, "Stream-Ordered Memory Allocator": memory of a pool is shared through the pool.)
5. Only another process may open a handle, one context per device. Opening it again returns the same pointer and counts.
   It may belong to a device that is not visible to the opening process. (CUDA Runtime API, `cudaIpcOpenMemHandle`.)
6. `cudaFree` of exported memory before the importer's `cudaIpcCloseMemHandle` is undefined. (The same page.)
7. A handle of an event needs the flags interprocess and no timing. Using an imported event after the exporter destroyed
   it is undefined. Waiting uses the record at the time of the call. (`cudaIpcGetEventHandle`, `cudaIpcOpenEventHandle`,
   `cudaEventRecord`.)
8. An event and its stream are on one device; a kernel cannot be launched on the stream of another device than the
   current one. (CUDA Programming Guide, "Stream and Event Behavior" of multi-device systems.)
9. A forked child cannot use a runtime that its parent has initialised. (CUDA does not support `fork`: cuda-python,
   `_check_multiprocessing_start_method`.)
10. CuPy's pool keeps freed memory for the stream it was allocated on. (CuPy, `SingleDeviceMemoryPool`.)
11. A thread has a context only after a call of the runtime that needs one; `cudaSetDevice` is such a call, and CuPy's
    `Device` makes it only if another device is current. A call of the driver without a context is error 201. (CUDA
    Driver API, "Context Management"; CUDA Runtime API, `cudaSetDevice`, since 12.0.)

What a program may not do is written to the file `violations`; the test then fails. The folder is `EMULATED_CUDA`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import mmap
import os
import struct
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np

POISON = 0xDB
_FLOCK = struct.Struct("hhqqi4x")
_WORD = struct.Struct("<Q")
_PAGE = 4096
_IMPORTED, _OWNED = 0, 1  # bytes of a region's file that its importers and its owner lock
_HANDLE = struct.Struct("<4sIQI16s28x")
_EVENT = struct.Struct("<4sIQ48x")
ERRORS = {
    1: "cudaErrorInvalidValue: invalid argument",
    2: "cudaErrorMemoryAllocation: out of memory",
    3: "cudaErrorInitializationError: initialization error",
    100: "cudaErrorNoDevice: no CUDA-capable device is detected",
    101: "cudaErrorInvalidDevice: invalid device ordinal",
    201: "cudaErrorDeviceUninitialized: invalid device context",
    217: "cudaErrorPeerAccessUnsupported: peer access is not supported between these two devices",
    400: "cudaErrorInvalidResourceHandle: invalid resource handle",
    801: "cudaErrorNotSupported: operation not supported",
}


class CUDARuntimeError(RuntimeError):
    """An error of the runtime; CuPy resets the runtime's last error before it raises this."""

    def __init__(self, status):
        self.status = status
        super().__init__(ERRORS[status])

    def __reduce__(self):
        return type(self), (self.status,)


class Op:
    """A piece of work on a stream, and what it has to wait for."""

    __slots__ = ("deps", "done", "work")

    def __init__(self, work, deps):
        self.work, self.done = work, False
        self.deps = [dep for dep in deps if dep is not None and not dep.done]


class Stream:
    """A queue of work: its last piece, on which the next depends."""

    def __init__(self, device, blocking):
        self.device, self.blocking, self.tail = device, blocking, None


class Region:
    """An allocation as this process sees it."""

    def __init__(self, file, base, data, device, kind, path, generation, fd, imported=False):
        self.file, self.base, self.data, self.device, self.kind = file, base, data, device, kind
        self.path, self.generation, self.fd, self.imported = path, generation, fd, imported
        self.size, self.users, self.closed, self.exported, self.uuid = data.nbytes, 1, False, False, b""


def _lock(fd, kind, byte):
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, 0, byte, 1, 0))


def _locked(fd, byte):
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, byte, 1, 0))
    return _FLOCK.unpack(answer)[0] != fcntl.F_UNLCK


def _map(fd, size):
    file = mmap.mmap(fd, size)
    data = np.frombuffer(file, np.uint8)
    return file, data


class Event:
    """An event: its last record here, and a shared file once it may be used by other processes."""

    def __init__(self, device, flags):
        self.device, self.flags = device, flags
        self.op, self.path, self.words, self.ops = None, None, None, {}
        self.imported, self.queries = False, 0


class Machine:
    """The devices as one process sees them."""

    def __init__(self):
        self.folder = Path(os.environ["EMULATED_CUDA"])
        self.capacity = int(os.environ.get("EMULATED_CUDA_MEMORY", 64 << 20))
        physical = int(os.environ.get("EMULATED_CUDA_DEVICES", 2))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        chosen = range(physical) if visible is None else [int(index) for index in visible.split(",") if index]
        self.uuids = [hashlib.md5(f"device {index}".encode()).digest() for index in chosen if index < physical]
        self.ipc = os.environ.get("EMULATED_CUDA_IPC", "1") == "1"  # rule 5: not on Tegra and WSL
        self.lock = threading.RLock()
        self.local = threading.local()
        self.pid, self.calls = os.getpid(), Counter()
        self.streams, self.events, self.regions = {}, {}, {}
        self.reusable, self.pinned, self.opened, self.used = {}, {}, {}, Counter()
        self.next, self.serving, self.pinned_peak = 1000, False, 0

    # devices

    def check(self):
        """Refuse a forked child (rule 9)."""
        if os.getpid() != self.pid:
            raise CUDARuntimeError(3)

    @property
    def device(self):
        self.check()
        return getattr(self.local, "device", 0)

    def set_device(self, index):
        self.check()
        if not 0 <= index < len(self.uuids):
            raise CUDARuntimeError(101)
        self.local.device, self.local.context = index, True

    def violation(self, text):
        with open(self.folder / "violations", "a") as file:
            file.write(f"process {os.getpid()}: {text}\n")

    def _number(self):
        self.next += 1
        return self.next

    # streams and events

    def new_stream(self, non_blocking):
        with self.lock:
            number = self._number()
            self.streams[number] = Stream(self.device, not non_blocking)
            return number

    def stream(self, number, launching=False):
        """Return a stream; 0 and 1 are the current device's legacy default stream."""
        self.check()
        if number in (0, 1, 2):
            number = -1 - self.device
            self.streams.setdefault(number, Stream(self.device, True))
        stream = self.streams.get(number)
        if stream is None or (launching and stream.device != self.device):
            raise CUDARuntimeError(400)  # rule 8
        return stream

    def enqueue(self, number, work, launching=False):
        """Queue work on a stream (rule 1) and return it."""
        with self.lock:
            self.local.context = True
            stream = self.stream(number, launching)
            legacy = self.streams.get(-1 - stream.device)
            deps = [stream.tail]
            if stream is legacy:
                deps += [o.tail for o in self.streams.values() if o.blocking and o.device == stream.device]
            elif stream.blocking and legacy is not None:
                deps.append(legacy.tail)
            stream.tail = Op(work, deps)
            return stream.tail

    def run(self, op):
        """Run a piece of work after all that it waits for, and nothing else."""
        with self.lock:
            stack = [op] if op is not None else []
            while stack:
                now = stack[-1]
                if now.done:
                    stack.pop()
                    continue
                waiting = [dep for dep in now.deps if not dep.done]
                if waiting:
                    stack += waiting
                    continue
                stack.pop()
                now.work()
                now.done, now.work, now.deps = True, None, []

    def synchronize(self, device=None):
        """Run all work of a device, the stream that was made last first."""
        with self.lock:
            self.local.context = True
            device = self.device if device is None else device
            for stream in sorted(self.streams.items(), reverse=True):
                if stream[1].device == device:
                    self.run(stream[1].tail)

    def new_event(self, flags):
        with self.lock:
            number = self._number()
            self.events[number] = Event(self.device, flags)
            return number

    def event(self, number):
        self.check()
        if number not in self.events:
            raise CUDARuntimeError(400)
        return self.events[number]

    def record(self, number, stream_number):
        with self.lock:
            event, stream = self.event(number), self.stream(stream_number)
            if event.device != stream.device:
                raise CUDARuntimeError(400)  # rule 8
            if event.words is None:
                event.op = self.enqueue(stream_number, lambda: None)
                return
            event.words[0] += 1
            count = int(event.words[0])

            def work():
                event.words[1] = max(int(event.words[1]), count)
                event.ops.pop(count, None)

            event.op = event.ops[count] = self.enqueue(stream_number, work)

    def wait_event(self, stream_number, number):
        """Make a stream wait for the present record of an event (rule 7)."""
        with self.lock:
            event = self.event(number)
            if event.imported:
                count = int(event.words[0])
                self.enqueue(stream_number, lambda: self._await(event, count))
            else:
                op = event.op
                self.enqueue(stream_number, lambda: None).deps += [op] if op is not None and not op.done else []

    def sync_event(self, number):
        event = self.event(number)
        if event.imported:
            self._await(event, int(event.words[0]))
        else:
            self.run(event.op)

    def query_event(self, number):
        """Return whether an event is done; the second question lets the work proceed, as a GPU would."""
        event = self.event(number)
        if event.op is None or event.op.done:
            return True
        event.queries += 1
        if event.queries > 1:
            self.run(event.op)
        return False

    def _await(self, event, count):
        if event.words[3]:
            self.violation("an imported event was used after its exporter destroyed it (rule 7)")
            return
        event.words[2] = max(int(event.words[2]), count)
        deadline = time.monotonic() + 20
        while int(event.words[1]) < count:
            if time.monotonic() > deadline or not Path(f"/proc/{event.flags}").exists():
                raise CUDARuntimeError(400)
            time.sleep(0.001)

    def export_event(self, number):
        with self.lock:
            event = self.event(number)
            if event.flags & 6 != 6 or not self.ipc:
                raise CUDARuntimeError(400 if self.ipc else 801)
            if event.words is None:
                event.path = self.folder / f"event-{os.getpid()}-{number}"
                event.path.write_bytes(bytes(_PAGE))
                with open(event.path, "r+b") as file:
                    event.words = np.frombuffer(mmap.mmap(file.fileno(), _PAGE), np.uint64)
                event.words[0] = 1
                op = event.op
                event.op = event.ops[1] = Op(lambda: event.words.__setitem__(1, 1), [op])
                self._serve()
            return _EVENT.pack(b"EVNT", os.getpid(), number)

    def import_event(self, handle):
        kind, pid, number = _EVENT.unpack(handle)
        path = self.folder / f"event-{pid}-{number}"
        if kind != b"EVNT" or pid == os.getpid() or not path.exists():
            raise CUDARuntimeError(400)
        with self.lock, open(path, "r+b") as file:
            here = self._number()
            event = self.events[here] = Event(self.device, pid)
            event.words, event.imported = np.frombuffer(mmap.mmap(file.fileno(), _PAGE), np.uint64), True
            return here

    def destroy_event(self, number):
        with self.lock:
            event = self.events.pop(number, None)
            if event is not None and event.path is not None:
                event.words[3] = 1
                with contextlib.suppress(OSError):
                    event.path.unlink()

    def _serve(self):
        """Run, from a thread, the work that other processes wait for: a GPU needs no help of its host's threads."""
        if self.serving:
            return
        self.serving = True

        def serve():
            while True:
                time.sleep(0.002)
                with self.lock:
                    for event in [e for e in self.events.values() if e.path is not None]:
                        for count, op in list(event.ops.items()):
                            if count <= int(event.words[2]):
                                self.run(op)

        threading.Thread(target=serve, daemon=True, name="emulated-gpu").start()

    # memory

    def malloc(self, size, kind="device"):
        """Return the address of new memory; the last one freed of that size is used first."""
        with self.lock:
            self.local.context = True
            device = self.device
            if self.used[device] + size > self.capacity:
                raise CUDARuntimeError(2)
            self.used[device] += size
            old = self.reusable.get((device, size, kind))
            if old:
                region = old.pop()
                region.closed, region.generation, region.exported = False, region.generation + 1, False
                _WORD.pack_into(region.file, 0, region.generation)
                self.regions[region.base] = region
                return region.base
            path = self.folder / f"memory-{os.getpid()}-{self._number()}"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
            os.ftruncate(fd, _PAGE + size)
            _lock(fd, fcntl.F_WRLCK, _OWNED)
            file, data = _map(fd, _PAGE + size)
            _WORD.pack_into(file, 0, 1)
            data = data[_PAGE:]
            data[:] = POISON
            region = Region(file, data.ctypes.data, data, device, kind, path, 1, fd)
            region.uuid = self.uuids[device]
            self.regions[region.base] = region
            return region.base

    def free(self, base, waits=None):
        """Free memory: it is poisoned at once (rule 3)."""
        with self.lock:
            if os.getpid() != self.pid:
                return
            region = self.regions.get(base)
            if region is None or region.imported:
                raise CUDARuntimeError(1)
            if waits is not None:
                self.run(self.streams[waits].tail if waits in self.streams else self.stream(waits).tail)
            if _locked(region.fd, _IMPORTED):
                self.violation(f"memory of {region.size} bytes was freed while another process had it open (rule 6)")
            del self.regions[base]
            region.data[:] = POISON
            region.closed = True
            region.generation += 1
            _WORD.pack_into(region.file, 0, region.generation)
            self.used[region.device] -= region.size
            self.reusable.setdefault((region.device, region.size, region.kind), []).append(region)

    def find(self, pointer):
        """Return the allocation that a pointer lies in, None if there is none."""
        for region in self.regions.values():
            if region.base <= pointer < region.base + max(region.size, 1):
                return region
        return None

    def view(self, pointer, shape, dtype, strides=None, order="C"):
        """Return NumPy's array over device memory; only work on a stream may look at it."""
        region = self.find(pointer)
        if region is None:
            return np.ndarray(shape, dtype, np.zeros(1, np.uint8), 0, [0] * len(shape)) if 0 in shape else None
        if 0 in shape:
            return np.ndarray(shape, dtype)
        return np.ndarray(shape, dtype, region.data, pointer - region.base, strides, order)

    def touch(self, arrays, what="work"):
        """Note work on memory that is gone; return whether all is there."""
        good = True
        for array in arrays:
            address = array.__array_interface__["data"][0]
            region = self.find(address) if array.size else True
            if region is None:
                self.violation(f"{what} ran on memory that was freed or closed before")
                good = False
            elif region is not True and region.imported and not _locked(region.fd, _OWNED):
                region.data[:] = POISON  # the owner's process has ended
        return good

    def host_alloc(self, size):
        with self.lock:
            memory = mmap.mmap(-1, max(size, 1))
            data = np.frombuffer(memory, np.uint8)
            self.pinned[data.ctypes.data] = data
            self.pinned_peak = max(self.pinned_peak, sum(memory.nbytes for memory in self.pinned.values()))
            return data.ctypes.data

    def is_pinned(self, pointer):
        return any(base <= pointer < base + data.nbytes for base, data in self.pinned.items())

    def copy(self, dst, src, size, stream=None):
        """Copy bytes between host and devices (rule 2); on the legacy default stream if `stream` is None."""
        with self.lock:
            to, of = self.find(dst), self.find(src)
            waits = stream is None
            number = 0 if waits else stream
            source = None
            if of is None and not self.is_pinned(src):
                if waits:
                    self.run(self.stream(number).tail)
                source = ctypes.string_at(src, size)  # staged now
            target = self.view(dst, (size,), np.uint8) if to else None
            origin = self.view(src, (size,), np.uint8) if of else None
            device = (to or of).device if (to or of) else self.device

            def work():
                if not self.touch([a for a in (target, origin) if a is not None], "a copy"):
                    return
                data = source if source is not None else (origin.tobytes() if of else ctypes.string_at(src, size))
                if to is not None:
                    target[:] = np.frombuffer(data, np.uint8)
                else:
                    ctypes.memmove(dst, data, size)

            previous = self.device
            if waits:
                self.local.device = device
            try:
                op = self.enqueue(number, work)
            finally:
                self.local.device = previous
            to_pageable = to is None and not self.is_pinned(dst)
            if (waits and not (to and source is not None) and not (to and of)) or to_pageable:
                self.run(op)

    # memory of other processes

    def export(self, base):
        with self.lock:
            region = self.regions.get(base)
            if not self.ipc:
                raise CUDARuntimeError(801)
            if region is None or region.kind != "device" or region.imported:
                raise CUDARuntimeError(1)  # rule 4
            region.exported = True
            number = int(region.path.name.rpartition("-")[2])
            return _HANDLE.pack(b"CMEM", os.getpid(), number, region.generation, region.uuid)

    def open(self, handle, flags):
        with self.lock:
            kind, pid, number, generation, uuid = _HANDLE.unpack(handle)
            device = self.device
            if kind != b"CMEM":
                raise CUDARuntimeError(1)
            if pid == os.getpid():
                raise CUDARuntimeError(201)  # rule 5
            if uuid != self.uuids[device] and not flags & 1:
                raise CUDARuntimeError(217)
            known = self.opened.get((handle, device))
            if known is not None:
                known.users += 1
                return known.base
            path = self.folder / f"memory-{pid}-{number}"
            try:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                raise CUDARuntimeError(1) from None
            size = os.fstat(fd).st_size
            file, data = _map(fd, size)
            _lock(fd, fcntl.F_RDLCK, _IMPORTED)
            if _WORD.unpack_from(file, 0)[0] != generation or not _locked(fd, _OWNED):
                os.close(fd)
                raise CUDARuntimeError(1)
            data = data[_PAGE:]
            region = Region(file, data.ctypes.data, data, device, "device", path, generation, fd, imported=True)
            region.uuid = uuid
            self.regions[region.base] = self.opened[handle, device] = region
            return region.base

    def close(self, base):
        with self.lock:
            self.check()
            region = self.regions.get(base)
            if region is None or not region.imported or region.device != self.device:
                self.violation("cudaIpcCloseMemHandle on another device than the one that opened the memory (rule 5)")
                raise CUDARuntimeError(1)
            region.users -= 1
            if not region.users:
                del self.regions[base]
                self.opened = {key: known for key, known in self.opened.items() if known is not region}
                region.closed = True
                os.close(region.fd)

    def end(self):
        """The process ends: so does all its memory, and work that is still queued never runs."""
        if os.getpid() != self.pid:
            return
        with self.lock:
            for base, region in list(self.regions.items()):
                if not region.imported:
                    self.free(base)


machine = Machine()
