"""Arrays, tensors and large bytes that this side sends, in pooled segments.

Only the creator of a segment can write to it. A segment returns to the pool with the last view of it on the other side,
and keeps what it holds: an array that has not changed since (see `dirty`) is not copied again.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from . import copies
from .budget import memory_limit
from .dirty import SMALLEST, TRACKER, partial_pages
from .errors import OverloadedError, UnsupportedTypeError, WireError
from .segments import TENSOR_TYPES, Block, Segment, dtype_text, size_class, taken

SMALL = 32 << 10
"""Arrays of at most so many bytes travel inside the frame."""
IDLE_BUDGET = 512 << 20
"""Bytes of idle blocks that a pool keeps at most."""
_IDLE_SHARE = 4
"""All pools of this process together keep one such part of its memory."""
_LOOKED_AT = 128 << 20
"""Larger arrays are not looked at for changes on an event loop's thread either."""
_LARGEST, _SMALLEST = 256 << 20, 1 << 20
"""Sizes between which the segments of a pool grow: many arrays need few of them, and so few descriptors."""


Note = Callable[[int], None]
"""Takes the number of a lease."""


class Shared:
    """The shared arrays of this process, by the identity of the array that owns the memory."""

    def __init__(self) -> None:
        self._segments: dict[int, tuple[Segment, Any]] = {}
        self._links: weakref.WeakSet[Outgoing] = weakref.WeakSet()

    def detach(self, link: Outgoing) -> None:
        """Report to this link no longer."""
        self._links.discard(link)

    def links(self) -> int:
        """Return how many pools there are."""
        return len(self._links)

    def attach(self, link: Outgoing) -> None:
        """Report the end of each shared array to this link."""
        self._links.add(link)

    def share(self, array: Any, writable: bool) -> Any:
        """Return a copy of an array in shared memory."""
        import numpy as np

        source = np.asarray(array)
        dtype_text(source.dtype)
        segment = Segment(max(1, source.nbytes), writable)
        flat = np.frombuffer(segment.view, dtype=np.uint8)
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
        """Return the segment of a shared array and the array's offset in it; None for any other array."""
        base = array.base
        entry = self._segments.get(id(base)) if base is not None else None
        if entry is None or entry[1]() is not base or not array.flags.c_contiguous:
            return None
        return entry[0], int(array.__array_interface__["data"][0] - base.__array_interface__["data"][0])


class Filled:
    """Bytes that are made in place, in the memory that the other side reads; they arrive as an array of bytes.

    Args:
        nbytes: How many.
        fill: Writes them into a memoryview of at least that size.
    """

    __slots__ = ("fill", "nbytes")

    def __init__(self, nbytes: int, fill: Callable[[Any], None]) -> None:
        self.nbytes, self.fill = nbytes, fill


SHARED = Shared()


def share(array: Any, *, writable: bool = False) -> Any:
    """Copy an array once into shared memory; passing the result, or a contiguous slice of it, copies nothing.

    Args:
        array: Anything that `numpy.asarray` takes, of a plain dtype.
        writable: Whether receivers may write too. Otherwise only this process can, and receivers see its writes.

    Returns:
        A writable ndarray of the same shape, dtype and content.

    Example:
        >>> import numpy
        >>> shared = share(numpy.arange(6.0))
        >>> float(shared.sum())
        15.0
    """
    return SHARED.share(array, writable)


class Outgoing:
    """The pool of segments of one link, and which of them the other side holds.

    Args:
        announce: Sends a segment's descriptor to the other side, once per segment. It gets an empty list too, which has
            an item once the descriptor is on its way.
        dropped_soon: Asks for `take_dropped` to be called soon; callable from a finalizer.
        segment_limit: Most segments that the other side takes.
    """

    def __init__(
        self,
        announce: Callable[[Segment, list[int]], None],
        dropped_soon: Callable[[], None],
        segment_limit: int = 4096,
    ) -> None:
        self._announce = announce
        self._dropped_soon = dropped_soon
        self._segment_limit = segment_limit
        self._lock = threading.Lock()
        self._announced: set[int] = set()
        self._leases = itertools.count(1)
        self._lent: dict[int, Block] = {}
        self._idle: dict[int, list[Block]] = {}
        self._pooled: dict[int, list[Segment]] = {}
        self._idle_bytes = 0
        self._dropped: deque[int] = deque()
        self._closed = False
        SHARED.attach(self)
        TRACKER.retain()

    def stats(self) -> dict[str, int]:
        """Return blocks and bytes: lent to the other side, and idle in the pool."""
        idle = [block for blocks in self._idle.values() for block in blocks if block.used]
        return {
            "lent": len(self._lent),
            "lent_bytes": sum(block.size for block in list(self._lent.values())),
            "idle": len(idle),
            "idle_bytes": self._idle_bytes,
        }

    def describe(self, value: Any, note: Note = lambda _: None) -> list[Any] | None:
        """Return the wire form of an array, tensor or bytes object; None for anything else.

        Args:
            value: The value.
            note: Called with the number of the lease of a block, before the block is lent.
        """
        if type(value) is bytes:
            where = self._store(len(value), lambda target: _fill_bytes(target, value), note)
            return ["bytes", where, None, [len(value)]]
        if type(value) is Filled:
            return [
                "numpy",
                self._store(value.nbytes, lambda target: value.fill(target[: value.nbytes]), note),
                "|u1",
                [value.nbytes],
            ]
        numpy: Any = sys.modules.get("numpy")
        if type(value) is getattr(numpy, "ndarray", None):  # another thread may be importing it
            text = dtype_text(value.dtype)
            shared = SHARED.find(value)
            if shared is not None and value.nbytes:
                segment, offset = shared
                self._tell(segment)
                return ["numpy", [segment.number, offset, 0, segment.writable], text, list(value.shape)]
            whole = value.nbytes >= SMALLEST and value.flags.c_contiguous
            address = value.__array_interface__["data"][0] if whole else None
            where = self._store(value.nbytes, lambda target: _fill_numpy(numpy, target, value), note, value, address)
            return ["numpy", where, text, list(value.shape)]
        torch: Any = sys.modules.get("torch")
        if type(value) is getattr(torch, "Tensor", None):
            name = str(value.dtype).removeprefix("torch.")
            if name not in TENSOR_TYPES or value.layout is not torch.strided:
                raise UnsupportedTypeError(f"a {value.layout} tensor of dtype {value.dtype} does not travel")
            nbytes = value.numel() * value.element_size()
            whole = nbytes >= SMALLEST and value.device.type == "cpu" and value.is_contiguous()
            address = value.data_ptr() if whole else None
            where = self._store(nbytes, lambda target: _fill_torch(torch, target, value), note, value, address)
            return ["torch", where, name, list(value.shape)]
        return None

    def _store(
        self, nbytes: int, fill: Callable[[Any], None], note: Note, owner: Any = None, address: int | None = None
    ) -> Any:
        if nbytes <= SMALL or not hasattr(os, "memfd_create"):  # without it, large arrays travel in the frame
            copies.count(nbytes)
            data = bytearray(nbytes)
            if nbytes:
                fill(memoryview(data))
            return bytes(data)
        stamp = None if address is None else self._version(owner, address, nbytes)
        if copies.STATE.left is not None and not self._has(size_class(nbytes), stamp):
            try:
                copies.count(nbytes)
            except copies.CopyNeededError:
                copies.STATE.versions[id(owner)] = stamp
                raise
        block = self._take(size_class(nbytes), stamp, note)
        try:
            view = block.view
            if address is not None and stamp is not None and block.stamp == stamp:
                for offset, count in partial_pages(address, nbytes):
                    view[offset : offset + count] = ctypes.string_at(address + offset, count)
            else:
                block.stamp = None
                fill(view)
                block.stamp = stamp
            self._tell(block.segment)
            block.segment.close()  # this link is the only one that needs the descriptor, and has it now
        except BaseException:
            self.unsent(block.lease)
            raise
        return [block.segment.number, block.offset, block.lease, False]

    @staticmethod
    def _version(owner: Any, address: int, nbytes: int) -> int | None:
        versions = copies.STATE.versions
        if id(owner) in versions:
            return versions.pop(id(owner))
        if nbytes > _LOOKED_AT:
            copies.count(nbytes)
        return TRACKER.stamp(owner, address, nbytes)

    def _has(self, size: int, stamp: int | None) -> bool:
        with self._lock:
            return stamp is not None and any(block.stamp == stamp for block in self._idle.get(size, ()))

    def _take(self, size: int, stamp: int | None, note: Note) -> Block:
        """Return a free block that already holds this version, else any free one whose content is outdated."""
        with self._lock:
            idle = self._idle.setdefault(size, [])
            found = None
            if stamp is not None:
                found = next((block for block in idle if block.stamp == stamp), None)
            if found is None:
                found = next((b for b in reversed(idle) if b.stamp is None or not TRACKER.is_current(b.stamp)), None)
            if found is None:
                self._grow(size, idle)
                found = idle[-1]
            found.lease = next(self._leases)
            note(found.lease)
            self._lent[found.lease] = found
            idle.remove(found)
            if found.used:
                self._idle_bytes -= size
            found.used = True
        return found

    def _grow(self, size: int, idle: list[Block]) -> None:
        """Add a segment with as many blocks as there are, within bounds."""
        pooled = self._pooled.setdefault(size, [])
        have = sum(segment.size for segment in pooled)
        count = max(1, min(max(have, _SMALLEST), _LARGEST) // size)
        segment = Segment(size * count)
        pooled.append(segment)
        # The first block is used first, so that memory is touched from the start.
        idle += [Block(segment, index * size, size) for index in reversed(range(count))]

    def _tell(self, segment: Segment) -> None:
        # Under the lock: another thread must not refer to the segment before its descriptor is on the way.
        with self._lock:
            if segment.number not in self._announced:
                if len(self._announced) >= self._segment_limit:
                    raise OverloadedError(
                        f"the other side holds {len(self._announced)} segments; drop shared arrays, or pass copies"
                    )
                sent: list[int] = []
                try:
                    self._announced.add(segment.number)
                    self._announce(segment, sent)
                except BaseException:  # also where the call is cancelled, or a signal handler raises
                    if not sent:
                        self._announced.discard(segment.number)
                    raise

    def returned(self, lease: int) -> list[int]:
        """Take a block back into the pool; return the numbers of segments that left it."""
        with self._lock:
            block = self._lent.pop(lease, None)
            if block is None:
                raise WireError(f"lease {lease} was returned and is not lent")
            self._idle.setdefault(block.size, []).append(block)
            self._idle_bytes += block.size
            budget = min(IDLE_BUDGET, memory_limit() // _IDLE_SHARE // max(1, SHARED.links()))
            return self._trim(budget) if self._idle_bytes > budget else []

    def _trim(self, budget: int) -> list[int]:
        """Give up whole segments, the largest blocks first, until the idle ones are within the budget."""
        trimmed: list[int] = []
        for size in sorted(self._idle, reverse=True):
            idle = self._idle[size]
            for segment in list(self._pooled.get(size, ())):
                if self._idle_bytes <= budget:
                    return trimmed
                own = [block for block in idle if block.segment is segment]
                if len(own) * size < segment.size:
                    continue
                self._idle_bytes -= sum(size for block in own if block.used)
                self._idle[size] = idle = [block for block in idle if block.segment is not segment]
                self._pooled[size].remove(segment)
                segment.close()
                if segment.number in self._announced:
                    self._announced.discard(segment.number)
                    trimmed.append(segment.number)
        return trimmed

    def unsent(self, lease: int) -> list[int]:
        """Take back a block that is not sent, if it was lent; return the numbers of segments that left the pool."""
        with self._lock:
            block = None if self._closed else self._lent.get(lease)
            if block is not None and block in self._idle.get(block.size, ()):  # it was interrupted on the way out
                del self._lent[lease]
        return [] if block is None or lease not in self._lent else self.returned(lease)

    def take_dropped(self) -> list[int]:
        """Return the announced segments of shared arrays that ended."""
        dropped = []
        for number in taken(self._dropped):
            if number in self._announced:
                self._announced.discard(number)
                dropped.append(number)
        return dropped

    def drop_soon(self, number: int) -> None:
        """Note the end of a shared array; callable from a finalizer."""
        self._dropped.append(number)
        self._dropped_soon()

    def close(self) -> None:
        """Give up all segments; views that are still held live on."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            SHARED.detach(self)
            TRACKER.release()
            for segments in self._pooled.values():
                for segment in segments:
                    segment.close()
            self._lent.clear()
            self._idle.clear()
            self._pooled.clear()
            self._idle_bytes = 0


def _fill_bytes(target: Any, value: bytes) -> None:
    if len(value) <= SMALL:
        target[: len(value)] = value
    else:  # other threads go on meanwhile
        ctypes.memmove((ctypes.c_char * len(value)).from_buffer(target), value, len(value))


def _fill_numpy(numpy: Any, target: Any, value: Any) -> None:
    out = numpy.frombuffer(target, dtype=value.dtype, count=value.size).reshape(value.shape)
    numpy.copyto(out, value)


def _fill_torch(torch: Any, target: Any, value: Any) -> None:
    out = torch.frombuffer(target, dtype=value.dtype, count=value.numel()).view(value.shape)
    out.copy_(value.detach())
