"""Arrays, tensors and large bytes: pooled anonymous memory passed by descriptor; knows segments, not calls.

Each sender keeps a pool of memfd segments. The creator alone can write: size and further writable mappings are sealed,
so a receiver can neither change nor truncate what it reads. A segment returns to the pool with the last view of it, and
keeps what it holds: an array that has not changed since (see `watch`) is not copied again.
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import math
import mmap
import os
import re
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

from .errors import Overloaded, UnsupportedType, WireError
from .watch import SMALLEST, WATCH, ends

SMALL = 32 << 10
IDLE_BUDGET = 512 << 20
SEGMENT_LIMIT = 4096
F_SEAL_FUTURE_WRITE = 0x10
_SHRINK_GROW = 0x2 | 0x4
_ids = itertools.count(1)
_DTYPE = re.compile(r"[<>|=][biufcSUMm]\d{1,9}(\[\d{0,9}[a-zA-Z]{1,2}\])?\Z")
_FLOATS = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2")
_INTEGERS = ("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64")
_TENSOR_TYPES = frozenset(_FLOATS + _INTEGERS)


class Segment:
    """One memfd with this process's writable mapping of it."""

    __slots__ = ("__weakref__", "fd", "map", "number", "size", "stamp", "writable")

    def __init__(self, size: int, writable: bool = False) -> None:
        self.number = next(_ids)
        self.size = size
        self.writable = writable
        self.stamp: int | None = None
        self.fd = os.memfd_create("isolate", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, size)
            self.map = mmap.mmap(self.fd, size)
            seals = _SHRINK_GROW if writable else _SHRINK_GROW | F_SEAL_FUTURE_WRITE
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        except BaseException:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """Drop the descriptor; the mapping ends with its last user."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()


def size_class(nbytes: int) -> int:
    """Bytes of the segment that holds `nbytes`: powers of two up to 1 MiB, then steps of an eighth."""
    if nbytes <= 1 << 20:
        return max(65536, 1 << (nbytes - 1).bit_length())
    step = 1 << ((nbytes - 1).bit_length() - 4)
    return -(-nbytes // step) * step


class Shared:
    """The shared arrays of this process, by the identity of the array that owns the memory."""

    def __init__(self) -> None:
        self._segments: dict[int, tuple[Segment, Any]] = {}
        self._links: weakref.WeakSet[Buffers] = weakref.WeakSet()

    def attach(self, buffers: Buffers) -> None:
        """Tell this link when a shared array ends."""
        self._links.add(buffers)

    def share(self, array: Any, writable: bool) -> Any:
        """A copy of an array in memory that travels without being copied again."""
        import numpy as np

        source = np.asarray(array)
        _check_dtype(source.dtype)
        segment = Segment(max(1, source.nbytes), writable)
        flat = np.frombuffer(segment.map, dtype=np.uint8)
        out = flat[: source.nbytes].view(source.dtype).reshape(source.shape) if source.nbytes else np.empty_like(source)
        if source.nbytes:
            np.copyto(out, source)
        key = id(flat)

        def gone(_: object) -> None:
            entry = self._segments.pop(key, None)
            for link in list(self._links):
                link.drop_soon(segment.number)
            del entry

        self._segments[key] = (segment, weakref.ref(flat, gone))
        return out

    def find(self, array: Any) -> tuple[Segment, int] | None:
        """The segment under a shared array and the array's offset in it."""
        base = array.base
        entry = self._segments.get(id(base)) if base is not None else None
        if entry is None or entry[1]() is not base or not array.flags.c_contiguous:
            return None
        return entry[0], int(array.__array_interface__["data"][0] - base.__array_interface__["data"][0])


SHARED = Shared()


def share(array: Any, *, writable: bool = False) -> Any:
    """Copy an array once into shared memory; passing the result, or a contiguous slice of it, copies nothing.

    Args:
        array: Anything that `numpy.asarray` takes, of a plain dtype.
        writable: Let receivers write too. Otherwise only this process can, and receivers see its writes.

    Returns:
        A writable ndarray of the same shape, dtype and content.
    """
    return SHARED.share(array, writable)


def _check_dtype(dtype: Any) -> str:
    text = str(dtype.str)
    if dtype.hasobject or not _DTYPE.match(text):
        raise UnsupportedType(
            f"an array of dtype {dtype} does not travel; wanted booleans, numbers, times or fixed-width text and bytes"
        )
    return text


class Buffers:
    """One link's outgoing pool and incoming mappings.

    Args:
        announce: Sends a segment's descriptor to the other side, once per segment.
        freed: Asks for `take_freed` and `take_dropped` to be called soon; callable from a finalizer.
        import_torch: Whether a tensor from the other side may make this process import torch.
    """

    def __init__(
        self, announce: Callable[[Segment], None], freed: Callable[[], None], import_torch: bool = True
    ) -> None:
        self._announce = announce
        self._freed_soon = freed
        self._import_torch = import_torch
        self._lock = threading.Lock()
        self._announced: set[int] = set()
        self._lent: dict[int, Segment] = {}
        self._idle: dict[int, list[Segment]] = {}
        self._idle_bytes = 0
        self._incoming: dict[int, tuple[int, int, mmap.mmap | None]] = {}
        self._leases: dict[int, Any] = {}
        self._freed: list[int] = []
        self._dropped: list[int] = []
        self._closed = False
        SHARED.attach(self)
        WATCH.retain()

    def stats(self) -> dict[str, int]:
        """Segments and bytes: lent to the other side, idle in the pool, mapped from the other side."""
        return {
            "lent": len(self._lent),
            "lent_bytes": sum(segment.size for segment in self._lent.values()),
            "idle": sum(map(len, self._idle.values())),
            "idle_bytes": self._idle_bytes,
            "mapped": len(self._incoming),
        }

    # Sending

    def describe(self, value: Any) -> list[Any] | None:
        """The wire form of an array, tensor or bytes object; None for anything else."""
        if type(value) is bytes:
            return ["bytes", self._store(len(value), lambda target: _fill_bytes(target, value)), None, [len(value)]]
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.ndarray):
            text = _check_dtype(value.dtype)
            shared = SHARED.find(value)
            if shared is not None and value.nbytes:
                segment, offset = shared
                self._tell(segment)
                return ["numpy", [segment.number, offset, False, segment.writable], text, list(value.shape)]
            whole = value.nbytes >= SMALLEST and value.flags.c_contiguous
            address = value.__array_interface__["data"][0] if whole else None
            where = self._store(value.nbytes, lambda target: _fill_numpy(numpy, target, value), value, address)
            return ["numpy", where, text, list(value.shape)]
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(value, torch.Tensor):
            name = str(value.dtype).removeprefix("torch.")
            if name not in _TENSOR_TYPES or value.layout is not torch.strided:
                raise UnsupportedType(f"a {value.layout} tensor of dtype {value.dtype} does not travel")
            nbytes = value.numel() * value.element_size()
            whole = nbytes >= SMALLEST and value.device.type == "cpu" and value.is_contiguous()
            address = value.data_ptr() if whole else None
            where = self._store(nbytes, lambda target: _fill_torch(torch, target, value), value, address)
            return ["torch", where, name, list(value.shape)]
        return None

    def _store(self, nbytes: int, fill: Callable[[Any], None], owner: Any = None, address: int | None = None) -> Any:
        if nbytes <= SMALL or not hasattr(os, "memfd_create"):  # without it, large arrays travel in the frame
            data = bytearray(nbytes)
            if nbytes:
                fill(data)
            return bytes(data)
        stamp = None if address is None else WATCH.stamp(owner, address, nbytes)
        segment = self._take(size_class(nbytes), stamp)
        try:
            if address is not None and stamp is not None and segment.stamp == stamp:
                for offset, count in ends(address, nbytes):
                    segment.map[offset : offset + count] = ctypes.string_at(address + offset, count)
            else:
                segment.stamp = None
                fill(segment.map)
                segment.stamp = stamp
            self._tell(segment)
        except BaseException:
            self.returned(segment.number)
            raise
        return [segment.number, 0, True, False]

    def _take(self, size: int, stamp: int | None) -> Segment:
        """A segment that holds the content of that stamp already, else one whose content nobody will ask for again."""
        with self._lock:
            idle = self._idle.setdefault(size, [])
            found = None
            if stamp is not None:
                found = next((segment for segment in idle if segment.stamp == stamp), None)
            if found is None:
                found = next((s for s in reversed(idle) if s.stamp is None or not WATCH.is_current(s.stamp)), None)
            if found is not None:
                idle.remove(found)
                self._idle_bytes -= size
            else:
                if len(self._lent) >= SEGMENT_LIMIT:
                    raise Overloaded(f"{len(self._lent)} arrays are still held by the other side")
                found = Segment(size)
            self._lent[found.number] = found
        return found

    def _tell(self, segment: Segment) -> None:
        # Under the lock: another thread must not refer to the segment before its descriptor is on the way.
        with self._lock:
            if segment.number not in self._announced:
                self._announce(segment)
                self._announced.add(segment.number)

    def returned(self, number: int) -> list[int]:
        """Take a segment back into the pool; gives the numbers of those that left it."""
        trimmed = []
        with self._lock:
            segment = self._lent.pop(number, None)
            if segment is None:
                raise WireError(f"segment {number} was returned and is not lent")
            self._idle.setdefault(segment.size, []).append(segment)
            self._idle_bytes += segment.size
            while self._idle_bytes > IDLE_BUDGET:
                size = max(size for size, idle in self._idle.items() if idle)
                victim = self._idle[size].pop(0)
                self._idle_bytes -= size
                self._announced.discard(victim.number)
                victim.close()
                trimmed.append(victim.number)
        return trimmed

    def unsent(self, described: list[Any]) -> list[int]:
        """Take back the segment of a wire form that will not be sent; gives the numbers of those that left the pool."""
        where = described[1]
        return self.returned(where[0]) if type(where) is list and where[2] and not self._closed else []

    # Receiving

    def arrived(self, number: int, fd: int) -> None:
        """Take the descriptor of a segment of the other side; refuses what could be truncated under a mapping."""
        try:
            if number in self._incoming or len(self._incoming) >= SEGMENT_LIMIT:
                raise WireError(f"segment {number} was announced twice, or is one of more than {SEGMENT_LIMIT}")
            try:
                seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
            except OSError:
                seals = 0
            if seals & _SHRINK_GROW != _SHRINK_GROW:
                raise WireError(f"segment {number} is not sealed memory")
            size = os.fstat(fd).st_size
        except BaseException:
            os.close(fd)
            raise
        self._incoming[number] = (fd, size, None)

    def dropped(self, number: int) -> None:
        """Forget a segment that the other side has given up; views of it live on."""
        entry = self._incoming.pop(number, None)
        if entry is not None:
            os.close(entry[0])

    def restore(self, parts: Any) -> Any:
        """The array, tensor or bytes object for a wire form."""
        if type(parts) is not list or len(parts) != 4:
            raise WireError("an array is not described by four parts")
        form, where, dtype, shape = parts
        if type(shape) is not list or len(shape) > 64 or not all(type(n) is int and 0 <= n < 1 << 62 for n in shape):
            raise WireError(f"an array has the shape {shape!r:.80}")
        if form == "bytes":
            return self._bytes(where, math.prod(shape))
        if form == "numpy":
            return self._numpy(where, dtype, shape)
        if form == "torch":
            return self._torch(where, dtype, shape)
        raise WireError(f"an array is of the unknown form {form!r:.80}")

    def _region(self, where: Any, nbytes: int) -> tuple[int, int, int, int, bool, bool]:
        if type(where) is not list or len(where) != 4 or not all(type(part) in (int, bool) for part in where):
            raise WireError("an array's place is neither bytes nor four numbers")
        number, offset, lent, writable = where
        entry = self._incoming.get(number)
        if entry is None:
            raise WireError(f"an array is in segment {number}, which was not announced")
        if offset < 0 or nbytes <= 0 or offset + nbytes > entry[1]:
            raise WireError(f"an array of {nbytes} bytes at {offset} passes the end of its segment of {entry[1]} bytes")
        if lent and number in self._leases:
            raise WireError(f"segment {number} was sent twice without being returned")
        return number, entry[0], entry[1], offset, bool(lent), bool(writable)

    def _lease(self, number: int, holder: Any) -> None:
        def gone(_: object) -> None:
            # Runs inside any thread's garbage collection: no lock may be taken here.
            self._leases.pop(number, None)
            self._freed.append(number)
            self._freed_soon()

        self._leases[number] = weakref.ref(holder, gone)

    def _bytes(self, where: Any, nbytes: int) -> bytes:
        if type(where) is bytes:
            if len(where) != nbytes:
                raise WireError(f"{len(where)} bytes came where {nbytes} were announced")
            return where
        number, fd, size, offset, lent, _ = self._region(where, nbytes)
        with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapped:
            data = mapped[offset : offset + nbytes]
        if lent:
            self._freed.append(number)
            self._freed_soon()
        return data

    def _numpy(self, where: Any, dtype: Any, shape: list[int]) -> Any:
        if type(dtype) is not str or not _DTYPE.match(dtype):
            raise WireError(f"an array has the dtype {dtype!r:.80}")
        try:
            import numpy as np
        except ImportError:
            raise UnsupportedType(
                "an ndarray came and numpy is not installed here; add it to the dependencies"
            ) from None
        try:
            kind = np.dtype(dtype)
        except TypeError as failure:
            raise WireError(f"an array has the dtype {dtype!r:.80}: {failure}") from None
        count = math.prod(shape)
        nbytes = count * kind.itemsize
        if type(where) is bytes:
            if len(where) != nbytes:
                raise WireError(f"{len(where)} bytes came for an array of {nbytes}")
            return np.frombuffer(where, dtype=kind).reshape(shape) if nbytes else np.empty(shape, kind)
        number, fd, size, offset, lent, writable = self._region(where, nbytes)
        mapped = self._incoming[number][2]
        if mapped is None:
            try:
                mapped = mmap.mmap(fd, size, prot=mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ)
            except (OSError, ValueError) as failure:
                raise WireError(f"segment {number} cannot be mapped: {failure}") from None
            self._incoming[number] = (fd, size, mapped)
        flat = np.frombuffer(mapped, dtype=kind, count=count, offset=offset)
        if lent:
            self._lease(number, flat)
        return flat.reshape(shape)

    def _torch(self, where: Any, name: Any, shape: list[int]) -> Any:
        if name not in _TENSOR_TYPES:
            raise WireError(f"a tensor has the dtype {name!r:.80}")
        torch: Any = sys.modules.get("torch")
        if torch is None:
            if not self._import_torch:
                raise UnsupportedType(
                    "a tensor came and torch is not imported here; import it, or set share_torch: true"
                )
            try:
                import torch
            except ImportError:
                raise UnsupportedType(
                    "a tensor came and torch is not installed here; add it to the dependencies"
                ) from None
        kind = getattr(torch, name, None)
        if kind is None:
            raise UnsupportedType(f"torch {torch.__version__} has no dtype {name}")
        count = math.prod(shape)
        nbytes = count * torch.empty((), dtype=kind).element_size()
        if type(where) is bytes:
            if len(where) != nbytes:
                raise WireError(f"{len(where)} bytes came for a tensor of {nbytes}")
            return (
                torch.frombuffer(bytearray(where), dtype=kind).view(shape) if nbytes else torch.empty(shape, dtype=kind)
            )
        number, fd, size, offset, lent, writable = self._region(where, nbytes)
        # torch has no read-only tensors: a private mapping makes a write hit a copy of the page instead of a signal.
        flags = mmap.MAP_SHARED if writable else mmap.MAP_PRIVATE
        try:
            mapped = mmap.mmap(fd, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        except (OSError, ValueError) as failure:
            raise WireError(f"segment {number} cannot be mapped: {failure}") from None
        if lent:
            self._lease(number, mapped)
        return torch.frombuffer(mapped, dtype=kind, count=count, offset=offset).view(shape)

    def take_freed(self) -> tuple[list[int], list[int]]:
        """Segments of the other side that nobody here views any more, and shared segments of this side that ended."""
        freed, self._freed = self._freed, []
        dropped, self._dropped = self._dropped, []
        return freed, [number for number in dropped if number in self._announced]

    def drop_soon(self, number: int) -> None:
        """Note the end of a shared array; callable from a finalizer."""
        self._dropped.append(number)
        self._freed_soon()

    def close(self) -> None:
        """Give up all segments and mappings; views that are still held live on."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            WATCH.release()
            for fd, _, _ in self._incoming.values():
                os.close(fd)
            for segments in (list(self._lent.values()), *self._idle.values()):
                for segment in segments:
                    segment.close()
            self._incoming.clear()
            self._lent.clear()
            self._idle.clear()
            self._idle_bytes = 0


def _fill_bytes(target: Any, value: bytes) -> None:
    target[: len(value)] = value


def _fill_numpy(numpy: Any, target: Any, value: Any) -> None:
    out = numpy.frombuffer(target, dtype=value.dtype, count=value.size).reshape(value.shape)
    numpy.copyto(out, value)


def _fill_torch(torch: Any, target: Any, value: Any) -> None:
    out = torch.frombuffer(target, dtype=value.dtype, count=value.numel()).view(value.shape)
    out.copy_(value.detach())
