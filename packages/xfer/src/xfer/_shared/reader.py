"""Reading side: turn a handle into a read-only array that holds a lease for as long as anyone looks at it.

Mappings are kept, because mapping and faulting anew costs more than reading. One `Reader` per process is enough and the
module makes it; it is a cache, so two users in one process do not interfere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import weakref
from collections import OrderedDict
from typing import Any

import numpy as np

from xfer._deferred import Deferred
from xfer._forks import on_fork
from xfer._shared import dtypes
from xfer._shared.handle import CUDA, FORTRAN, HEADER, TOKEN_IN_SLOT, Fields, Handle, parse, read_meta
from xfer._shared.lease import OFD, Leases
from xfer._shared.segment import WORDS, Mapping
from xfer.errors import HandleError, StaleHandleError

KEPT_MAPPINGS = 256


class _Watch(weakref.ref):  # type: ignore[type-arg]  # the referent is any array
    """A weak reference to a leased array that remembers whose slot to give back."""

    __slots__ = ("mapping", "slot")
    mapping: Mapping
    slot: int


class Reader:
    """The mappings and leases of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mappings: OrderedDict[int, Mapping] = OrderedDict()
        self._watches: dict[int, _Watch] = {}  # by id: a weak reference hashes like its array, so not at all
        self._dropped = Deferred(self._lock, self._end)
        self._for_child: list[tuple[Mapping, int]] = []

    def array(self, raw: bytes) -> tuple[np.ndarray[Any, Any], int]:
        """Lease the slot of a handle and return the read-only array over it, with the handle's flags.

        Raises:
            HandleError: The bytes are damaged or do not fit the segment.
            StaleHandleError: The array was released, or its producer is gone.
        """
        fields = parse(raw)
        flags, slot, nbytes = fields.flags, fields.slot, fields.nbytes
        with self._lock:
            self._dropped.drain()
            mapping = self._mappings.get(fields.segment)
            if mapping is None:
                mapping = self._attach(fields)
            if slot >= mapping.slots or nbytes + (fields.token_length if flags & TOKEN_IN_SLOT else 0) > mapping.stride:
                raise HandleError(f"the handle points outside its segment (slot {slot}, {nbytes} bytes)")
            counts = mapping.counts
            users = counts.get(slot, 0)
            if not users:
                Leases.acquire(mapping.fd, slot)
            # Only now, behind the lock: from here on the producer cannot reuse the slot without seeing the lease.
            words, index = mapping.words, WORDS + 2 * slot
            if words[index] != fields.stamp or words[index + 1] != int.from_bytes(raw[-4:], "little"):
                if not users:
                    Leases.release(mapping.fd, slot)
                raise StaleHandleError(
                    f"the array behind this handle is gone: slot {slot} of process {fields.pid} was released or "
                    "filled again"
                )
            counts[slot] = users + 1
            try:
                array = _view(mapping, raw, fields)
                watch = _Watch(array, self._dropped.note)
            except BaseException:
                _give_back(mapping, slot)
                raise
            watch.mapping, watch.slot = mapping, slot
            self._watches[id(watch)] = watch
        self._dropped.catch_up()
        return array, flags

    def leases(self, segment: int, slot: int) -> int:
        """How many arrays of this process look at a slot."""
        with self._lock:
            self._dropped.drain()
            mapping = self._mappings.get(segment)
            return mapping.counts.get(slot, 0) if mapping else 0

    def stats(self) -> dict[str, int]:
        """Count kept mappings, their bytes, and the live leases."""
        with self._lock:
            self._dropped.drain()
            mappings = self._mappings.values()
            return {
                "mappings": len(mappings),
                "mapped_bytes": sum(mapping.size for mapping in mappings),
                "leases": sum(sum(mapping.counts.values()) for mapping in mappings),
            }

    def trim(self, everything: bool = True) -> int:
        """Unmap segments without leases (all, or only those whose producer let go of them); return how many."""
        with self._lock:
            self._dropped.drain()
            return self._evict(everything)

    def _attach(self, fields: Fields) -> Mapping:
        self._evict(everything=False)
        while len(self._mappings) >= KEPT_MAPPINGS and self._evict_oldest():
            pass
        try:
            mapping = Mapping(fields)
        except OSError as error:
            spent = error.errno in (errno.ENOMEM, errno.ENFILE, errno.EMFILE)
            if not spent or not self._evict(everything=True):
                raise
            mapping = Mapping(fields)
        self._mappings[fields.segment] = mapping
        return mapping

    def _evict(self, everything: bool) -> int:
        gone = [m for m in self._mappings.values() if not m.counts and (everything or m.abandoned())]
        for mapping in gone:
            del self._mappings[mapping.id]
            mapping.close()
        return len(gone)

    def _evict_oldest(self) -> bool:
        for mapping in self._mappings.values():
            if not mapping.counts:
                del self._mappings[mapping.id]
                mapping.close()
                return True
        return False

    def _end(self, watch: _Watch) -> None:
        del self._watches[id(watch)]
        _give_back(watch.mapping, watch.slot)

    def before_fork(self) -> None:
        """Open every leased segment once more for the child, so that neither side's release ends the other's lease."""
        self._lock.acquire()
        self._dropped.drain()
        self._for_child = []
        if not OFD:
            return
        for mapping in self._mappings.values():
            if mapping.counts:
                with contextlib.suppress(OSError):
                    fd = os.open(f"/proc/self/fd/{mapping.fd}", os.O_RDONLY | os.O_CLOEXEC)
                    self._for_child.append((mapping, fd))
                    for slot in mapping.counts:
                        Leases.acquire(fd, slot)

    def after_fork_in_parent(self) -> None:
        """Close the child's openings here."""
        for _, fd in self._for_child:
            os.close(fd)
        self._for_child = []
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Take over the openings made for us, and drop mappings that nobody here looks at."""
        for mapping, fd in self._for_child:
            os.dup2(fd, mapping.fd, inheritable=False)
            os.close(fd)
        self._for_child = []
        for mapping in [m for m in self._mappings.values() if not m.counts]:
            del self._mappings[mapping.id]
            mapping.close()
        self._lock.release()


def _give_back(mapping: Mapping, slot: int) -> None:
    left = mapping.counts[slot] - 1
    if left:
        mapping.counts[slot] = left
    else:
        del mapping.counts[slot]
        Leases.release(mapping.fd, slot)


def _view(mapping: Mapping, raw: bytes, fields: Fields) -> np.ndarray[Any, Any]:
    offset, flags, nbytes = mapping.start + fields.slot * mapping.stride, fields.flags, fields.nbytes
    if flags & CUDA:
        return np.ndarray((nbytes,), np.uint8, mapping.map, offset)
    shape, token = read_meta(raw[HEADER.size : -4], fields.ndim)
    if flags & TOKEN_IN_SLOT:
        token = mapping.map[offset + nbytes : offset + nbytes + fields.token_length]
    return np.ndarray(shape, dtypes.decode(token), mapping.map, offset, None, "F" if flags & FORTRAN else "C")


class View:
    """A context manager over a leased array: `with open(handle) as array`."""

    __slots__ = ("_array",)

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array: np.ndarray[Any, Any] | None = array

    def __enter__(self) -> np.ndarray[Any, Any]:
        if self._array is None:
            raise StaleHandleError("this view was used before: open the handle again")
        return self._array

    def __exit__(self, *exc: object) -> None:
        self._array = None


READER = Reader()
on_fork(before=READER.before_fork, parent=READER.after_fork_in_parent, child=READER.after_fork_in_child)


def get(handle: Handle | bytes) -> Any:
    """Return the array behind a handle: no copy, read-only by the kernel, leased until the last view of it is gone.

    Args:
        handle: A `Handle`, or its bytes.

    Returns:
        A NumPy array, or a CuPy array where the producer put one of a CUDA device.

    Raises:
        HandleError: The bytes are damaged.
        StaleHandleError: The array was released, or its producer is gone.

    Example:
        >>> handle = xfer.put(np.arange(3))
        >>> array = xfer.get(bytes(handle))
        >>> int(array.sum()), array.flags.writeable
        (3, False)
        >>> xfer.release(handle)
    """
    array, flags = READER.array(bytes(handle))
    if flags & CUDA:
        from xfer._shared.cuda_ipc import open_record

        return open_record(array, bytes(handle))
    return array


def open(handle: Handle | bytes) -> View:
    """Like `get`, as a context: `with xfer.open(handle) as array: ...`.

    The lease ends when the block has ended and no view of the array is left, whichever is later: an array that is still
    in use never shows somebody else's data.

    Example:
        >>> handle = xfer.put(np.arange(3))
        >>> with xfer.open(handle) as array:
        ...     print(array.sum())
        3
        >>> del array
        >>> xfer.release(handle)
    """
    return View(get(handle))


def trim() -> int:
    """Unmap the shared memory that this process has mapped and holds no array of; return how many bytes.

    Example:
        >>> handle = xfer.put(np.arange(3))
        >>> int(xfer.get(handle).sum())
        3
        >>> xfer.trim() > 0
        True
        >>> xfer.release(handle)
    """
    before = READER.stats()["mapped_bytes"]
    READER.trim()
    return before - READER.stats()["mapped_bytes"]
