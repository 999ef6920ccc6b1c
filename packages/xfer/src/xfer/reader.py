"""Reading side: turn a handle into a read-only array that holds a lease for as long as anyone looks at it.

Mappings are kept, because mapping and faulting anew costs more than reading. One `Reader` per process is enough and the
module makes it; it is a cache, so two users in one process do not interfere.
"""

import contextlib
import errno
import os
import threading
import weakref
from collections import OrderedDict, deque
from typing import Any

import numpy as np

from xfer import dtypes
from xfer.descriptor import CUDA, FORTRAN, HEADER, TOKEN_IN_SLOT, Handle, parse, read_meta
from xfer.errors import HandleError, StaleHandleError
from xfer.lease import OFD, Leases
from xfer.segment import WORDS, Mapping

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
        self._dropped: deque[_Watch] = deque()
        self._for_child: list[tuple[Mapping, int]] = []

    def array(self, raw: bytes) -> tuple[np.ndarray[Any, Any], int]:
        """Lease the slot of a handle and return the read-only array over it, with the handle's flags.

        Raises:
            HandleError: The bytes are damaged or do not fit the segment.
            StaleHandleError: The array was released, or its producer is gone.
        """
        _, _, flags, ndim, _, token_length, pid, fd, segment, inode, slot, _, nbytes, stamp = parse(raw)
        with self._lock:
            if self._dropped:
                self._drain()
            mapping = self._mappings.get(segment)
            if mapping is None:
                mapping = self._attach(pid, fd, segment, inode)
            if slot >= mapping.slots or nbytes + (token_length if flags & TOKEN_IN_SLOT else 0) > mapping.stride:
                raise HandleError(f"the handle points outside its segment (slot {slot}, {nbytes} bytes)")
            counts = mapping.counts
            users = counts.get(slot, 0)
            if not users:
                Leases.acquire(mapping.fd, slot)
            # Only now, behind the lock: from here on the producer cannot reuse the slot without seeing the lease.
            words, index = mapping.words, WORDS + 2 * slot
            if words[index] != stamp or words[index + 1] != int.from_bytes(raw[-4:], "little"):
                if not users:
                    Leases.release(mapping.fd, slot)
                raise StaleHandleError(
                    f"the array behind this handle is gone: slot {slot} of process {pid} was released or filled anew"
                )
            counts[slot] = users + 1
            try:
                array = _view(mapping, raw, flags, ndim, token_length, slot, nbytes)
                watch = _Watch(array, self._forget)
            except BaseException:
                self._give_back(mapping, slot)
                raise
            watch.mapping, watch.slot = mapping, slot
            self._watches[id(watch)] = watch
        if self._dropped:
            self._catch_up()
        return array, flags

    def leases(self, segment: int, slot: int) -> int:
        """How many arrays of this process look at a slot."""
        with self._lock:
            self._drain()
            mapping = self._mappings.get(segment)
            return mapping.counts.get(slot, 0) if mapping else 0

    def stats(self) -> dict[str, int]:
        """Count kept mappings, their bytes, and the live leases."""
        with self._lock:
            self._drain()
            mappings = self._mappings.values()
            return {
                "mappings": len(mappings),
                "mapped_bytes": sum(mapping.size for mapping in mappings),
                "leases": sum(sum(mapping.counts.values()) for mapping in mappings),
            }

    def trim(self, everything: bool = True) -> int:
        """Unmap segments without leases (all, or only those whose producer let go of them); return how many."""
        with self._lock:
            self._drain()
            return self._evict(everything)

    def _attach(self, pid: int, fd: int, segment: int, inode: int) -> Mapping:
        self._evict(everything=False)
        while len(self._mappings) >= KEPT_MAPPINGS and self._evict_oldest():
            pass
        try:
            mapping = Mapping(pid, fd, segment, inode)
        except OSError as error:
            spent = error.errno in (errno.ENOMEM, errno.ENFILE, errno.EMFILE)
            if not spent or not self._evict(everything=True):
                raise
            mapping = Mapping(pid, fd, segment, inode)
        self._mappings[segment] = mapping
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

    def _forget(self, watch: _Watch) -> None:
        # Runs whenever an array dies, perhaps inside our own locked part: then whoever holds the lock does the work.
        self._dropped.append(watch)
        self._catch_up()

    def _catch_up(self) -> None:
        while self._dropped and self._lock.acquire(blocking=False):
            try:
                self._drain()
            finally:
                self._lock.release()

    def _drain(self) -> None:
        while self._dropped:
            watch = self._dropped.popleft()
            del self._watches[id(watch)]
            self._give_back(watch.mapping, watch.slot)

    @staticmethod
    def _give_back(mapping: Mapping, slot: int) -> None:
        left = mapping.counts[slot] - 1
        if left:
            mapping.counts[slot] = left
        else:
            del mapping.counts[slot]
            Leases.release(mapping.fd, slot)

    def before_fork(self) -> None:
        """Open every leased segment once more for the child, so that neither side's release ends the other's lease."""
        self._lock.acquire()
        self._drain()
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


def _view(
    mapping: Mapping, raw: bytes, flags: int, ndim: int, token_length: int, slot: int, nbytes: int
) -> np.ndarray[Any, Any]:
    offset = mapping.start + slot * mapping.stride
    if flags & CUDA:
        return np.ndarray((nbytes,), np.uint8, mapping.map, offset)
    shape, token = read_meta(raw[HEADER.size : -4], ndim)
    if flags & TOKEN_IN_SLOT:
        token = mapping.map[offset + nbytes : offset + nbytes + token_length]
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
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=READER.before_fork,
        after_in_parent=READER.after_fork_in_parent,
        after_in_child=READER.after_fork_in_child,
    )


def get(handle: Handle | bytes) -> Any:
    """Return the array behind a handle: no copy, read-only by the kernel, leased until the last view of it is gone.

    Args:
        handle: A `Handle`, or its bytes.

    Returns:
        A NumPy array, or a CuPy array where the producer put one of a CUDA device.

    Raises:
        HandleError: The bytes are damaged.
        StaleHandleError: The array was released, or its producer is gone.
    """
    array, flags = READER.array(bytes(handle))
    if flags & CUDA:
        from xfer.cuda_ipc import open_record

        return open_record(array, bytes(handle))
    return array


def open(handle: Handle | bytes) -> View:
    """Like `get`, as a context: `with xfer.open(handle) as array: ...`.

    The lease ends when the block has ended and no view of the array is left, whichever is later: an array that is still
    in use never shows somebody else's data.
    """
    return View(get(handle))
