"""The reader's side: turns a handle into a read-only array that holds a lease until its last view is gone.

Mappings are kept for a moment, because mapping anew costs more than reading. A mapping is dropped less than a second
after its last view. What a handle means never depends on a kept mapping: each `get` asks the kernel whether the
producer lives.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from xfer._arguments import token_bytes
from xfer._convert.interchange import Library, check_library, pinned, to_torch
from xfer._deferred import Deferred
from xfer._forks import on_fork
from xfer._shared import dtypes, tree
from xfer._shared.bequest import HEIR
from xfer._shared.consumed import check_not_taken, take_over
from xfer._shared.files import NO_DESCRIPTOR, NO_MEMORY, typed, typed_errors
from xfer._shared.handle import CONSUME, CUDA, FORTRAN, HEADER, TOKEN_IN_SLOT, TREE, Fields, Handle, parse, read_meta
from xfer._shared.lease import OFD, Leases
from xfer._shared.private import PrivateMap
from xfer._shared.segment import WORDS, Mapping
from xfer.errors import (
    BudgetExceededError,
    HandleError,
    ProducerGoneError,
    StaleHandleError,
    TooManyOpenFilesError,
    XferError,
)

KEPT_MAPPINGS = 256
KEEP_IDLE = 0.8  # seconds for which a mapping without views is kept
COPY_UP_TO = 64 << 10  # a private array of at most so many bytes is copied, which is cheaper than mapping it


class _Watch(weakref.ref):  # type: ignore[type-arg]  # the referent is any array
    """A weak reference to a leased array that remembers whose slot to give back."""

    __slots__ = ("mapping", "private", "slot")
    mapping: Mapping
    slot: int
    private: PrivateMap | None  # the mapping that the array lies over, if it has its own


class Reader:
    """The mappings and leases of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mappings: OrderedDict[int, Mapping] = OrderedDict()
        self._watches: dict[int, _Watch] = {}  # by id: a weak reference hashes like its array, so not at all
        self._dropped = Deferred(self._lock, self._end)
        self._for_child: list[tuple[Mapping, int]] = []
        self._caretaker = False  # whether a thread looks after mappings without views

    def array(self, raw: bytes, *, private: bool = False) -> tuple[np.ndarray[Any, Any], Fields]:
        """Lease the slot of a handle and return the array over it, with the handle's fields.

        Args:
            raw: The handle's bytes.
            private: Return a writable array; what is written to it stays in this process.

        Raises:
            HandleError: The bytes are damaged or do not fit the segment.
            StaleHandleError: The array was released, or its producer is gone.
        """
        fields = parse(raw)
        slot = fields.slot
        private = private and not fields.flags & CUDA  # the slot holds a record, and the lease must last
        with self._lock:
            self._dropped.drain()
            mapping = self._mappings.get(fields.segment)
            kept = mapping is not None
            if mapping is None:
                mapping = self._attach(fields)
            spilled = fields.token_length if fields.flags & TOKEN_IN_SLOT else 0
            if slot >= mapping.slots or fields.nbytes + spilled > mapping.stride:
                self._idle(mapping)
                raise HandleError(f"the handle points outside its segment (slot {slot}, {fields.nbytes} bytes)")
            users = mapping.counts.get(slot, 0)
            if not users:
                Leases.acquire(mapping.fd, slot)
            mapping.counts[slot] = users + 1
            try:
                # Only now, behind the lock: from here on the producer cannot reuse the slot without seeing the lease.
                _check_current(mapping, fields, raw, kept)
                own = self._private(mapping, slot) if private and fields.nbytes > COPY_UP_TO else None
                root, array = _view(mapping, raw, fields, private, own)
                if fields.flags & CONSUME:
                    check_not_taken(_ledger(mapping, fields), fields)
                watch = _Watch(root, self._dropped.note)
                watch.mapping, watch.slot, watch.private = mapping, slot, own
            except BaseException:
                self._give_back(mapping, slot)
                raise
            if private and 0 < fields.nbytes <= COPY_UP_TO:
                self._give_back(mapping, slot)  # it was copied
                return array, fields
            self._watches[id(watch)] = watch  # from here on the lease is the watch's to end
        self._dropped.catch_up()
        return array, fields

    def check(self, raw: bytes) -> None:
        """Check that the array behind a handle, which this process leases, is still its producer's.

        Raises:
            StaleHandleError: It was released.
            ProducerGoneError: The producer has ended.
        """
        fields = parse(raw)
        with self._lock:
            mapping = self._mappings.get(fields.segment)
            if mapping is None:
                raise StaleHandleError("this process holds no array of that handle")
            _check_current(mapping, fields, raw, True)

    def take_over(self, fields: Fields) -> None:
        """Tell the producer of an array that this process has taken it over.

        Raises:
            StaleHandleError: Another reader was faster.
            TooManyOpenFilesError: No descriptor is left; the array can be got again.
        """
        with self._lock:
            mapping = self._mappings.get(fields.segment)
            if mapping is None:  # a private copy was made, and the mapping was dropped since
                mapping = self._attach(fields)
                self._idle(mapping)
            ledger = _ledger(mapping, fields)
            check_not_taken(ledger, fields)
            take_over(ledger, fields)
            HEIR.took(fields.segment, fields.stamp)

    def leases(self, segment: int, slot: int) -> int:
        """Return how many arrays of this process lease a slot."""
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

    def trim(self) -> int:
        """Unmap segments without leases; return their bytes."""
        with self._lock:
            self._dropped.drain()
            return self._evict(_any)

    def _attach(self, fields: Fields) -> Mapping:
        self._evict(Mapping.abandoned)
        while len(self._mappings) >= KEPT_MAPPINGS and self._evict_oldest():
            pass
        for attempt in range(2):
            try:
                mapping = self._map(fields)
                break
            except OSError as error:
                if isinstance(error, XferError):
                    raise
                spent = error.errno in NO_MEMORY + NO_DESCRIPTOR
                if attempt or not spent or not self._evict(_any):
                    raise typed(error, "another process's memory") from error
        self._mappings[fields.segment] = mapping
        return mapping

    @staticmethod
    def _map(fields: Fields) -> Mapping:
        try:
            return Mapping(fields)
        except ProducerGoneError:
            estate = HEIR.find(fields.segment) if fields.flags & CONSUME else None
            if estate is None:
                raise
            return Mapping(fields, estate.segment)

    def _private(self, mapping: Mapping, slot: int) -> PrivateMap:
        try:
            return mapping.private(slot)
        except (BudgetExceededError, TooManyOpenFilesError):
            if not self._evict(_any):
                raise
            return mapping.private(slot)

    def _evict(self, wanted: Callable[[Mapping], bool]) -> int:
        gone = [mapping for mapping in self._mappings.values() if not mapping.counts and wanted(mapping)]
        for mapping in gone:
            del self._mappings[mapping.id]
            mapping.close()
        return sum(mapping.size for mapping in gone)

    def _evict_oldest(self) -> bool:
        for mapping in self._mappings.values():
            if not mapping.counts:
                del self._mappings[mapping.id]
                mapping.close()
                return True
        return False

    def _end(self, watch: _Watch) -> None:
        if self._watches.pop(id(watch), None) is not None:  # else a signal handler's error has ended the lease
            self._give_back(watch.mapping, watch.slot)
            if watch.private is not None:
                watch.mapping.keep(watch.private)

    def _give_back(self, mapping: Mapping, slot: int) -> None:
        left = mapping.counts[slot] - 1
        if left:
            mapping.counts[slot] = left
            return
        del mapping.counts[slot]
        Leases.release(mapping.fd, slot)
        self._idle(mapping)

    def _idle(self, mapping: Mapping) -> None:
        """Have a mapping dropped in a while if it has no views."""
        if not mapping.counts:
            mapping.idle_since = time.monotonic()
            if not self._caretaker:
                with contextlib.suppress(RuntimeError):  # no new thread while the interpreter exits
                    _thread.start_new_thread(self._look_after, ())
                    self._caretaker = True

    def _look_after(self) -> None:
        """Drop mappings without views when their time is up, until there are none; runs in a thread of its own."""
        while True:
            with self._lock:
                self._dropped.drain()
                now = time.monotonic()
                self._evict(partial(_idle_before, now - KEEP_IDLE))
                idle = [mapping.idle_since for mapping in self._mappings.values() if not mapping.counts]
                if not idle:
                    self._caretaker = False
                    return
            time.sleep(min(idle) + KEEP_IDLE - now)

    def before_fork(self) -> None:
        """Open every leased segment once more for the child, so that neither side's release ends the other's lease."""
        self._lock.acquire()
        self._dropped.drain()
        self._for_child = []
        if not OFD:
            return
        for mapping in self._mappings.values():
            if mapping.counts:
                try:
                    fd = os.open(f"/proc/self/fd/{mapping.fd}", os.O_RDONLY | os.O_CLOEXEC)
                except OSError:  # no descriptor is left: the leases that both sides share never end before both do
                    for slot in mapping.counts:
                        mapping.counts[slot] += 1
                    continue
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
        """Take over the openings made for us, and drop mappings without views."""
        for mapping, fd in self._for_child:
            os.dup2(fd, mapping.fd, inheritable=False)
            os.close(fd)
        self._for_child = []
        self._caretaker = False
        for mapping in [m for m in self._mappings.values() if not m.counts]:
            del self._mappings[mapping.id]
            mapping.close()
        self._lock.release()


def _any(mapping: Mapping) -> bool:
    del mapping
    return True


def _idle_before(moment: float, mapping: Mapping) -> bool:
    return mapping.idle_since <= moment


def _ledger(mapping: Mapping, fields: Fields) -> int:
    """Return the ledger of a segment: its producer's, or the one that a worker left to this process."""
    try:
        return mapping.open_ledger(fields.pid)
    except ProducerGoneError:
        estate = HEIR.find(fields.segment)
        if estate is None:
            raise
        with typed_errors("the ledger of consumed arrays"):
            mapping.ledger = os.dup(estate.ledger)
        return mapping.ledger


def _check_current(mapping: Mapping, fields: Fields, raw: bytes, kept: bool) -> None:
    words, index = mapping.words, WORDS + 2 * fields.slot
    if words[index] != fields.stamp or words[index + 1] != int.from_bytes(raw[-4:], "little"):
        raise StaleHandleError(
            f"the array behind this handle is gone: slot {fields.slot} of process {fields.pid} was released or "
            "filled again"
        )
    if kept and mapping.abandoned():
        raise ProducerGoneError(f"process {fields.pid}, which made this handle, has ended")


def _view(
    mapping: Mapping, raw: bytes, fields: Fields, private: bool, own: PrivateMap | None
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the bytes of a slot, which are the base of every view of them, and the array over them.

    Raises:
        HandleError: The array that the handle describes does not fit its bytes.
    """
    offset, flags, nbytes = mapping.start + fields.slot * mapping.stride, fields.flags, fields.nbytes
    plain: np.ndarray[Any, Any] = np.ndarray((nbytes,), np.uint8, mapping.map, offset)
    base = plain
    if private and nbytes:
        base = own.array(nbytes) if own is not None else plain.copy()
    if flags & (CUDA | TREE):
        return base, base
    try:
        shape, token = read_meta(raw[HEADER.size : -4], fields.ndim)
        if flags & TOKEN_IN_SLOT:
            token = mapping.map[offset + nbytes : offset + nbytes + fields.token_length]
        return base, np.ndarray(shape, dtypes.decode(token), base, 0, None, "F" if flags & FORTRAN else "C")
    except dtypes.MISFITS as error:
        if isinstance(error, XferError):
            raise
        raise HandleError(f"the array that the handle describes does not fit its {nbytes} bytes: {error}") from error


class View:
    """A context manager over a leased array or tree."""

    __slots__ = ("_array",)

    def __init__(self, array: Any) -> None:
        self._array: Any = array

    def __enter__(self) -> Any:
        if self._array is None:
            raise StaleHandleError("this view was used before: open the handle again")
        return self._array

    def __exit__(self, *exc: object) -> None:
        self._array = None


READER = Reader()
on_fork(before=READER.before_fork, parent=READER.after_fork_in_parent, child=READER.after_fork_in_child)


def get(handle: Handle | bytes, *, as_: Library = "numpy", pin: bool = False, stream: Any = None) -> Any:
    """Return the array or the tree behind a handle: no copy, read-only by the kernel, leased until its last view ends.

    Args:
        handle: A `Handle`, or its bytes.
        as_: "numpy", or "torch" for tensors. Those are writable: they lie over a private mapping of the same memory, so
            that an in-place operation copies the pages that it touches, and stays in this process. Both apply to host
            memory: of a CUDA device, a tensor arrives as a tensor, and a CuPy array as one unless `as_` is "torch".
        pin: Copy tensors into pinned memory, for a copy to a GPU that does not wait; needs a CUDA device.
        stream: A stream of CuPy or torch, or its address, that uses a CUDA array. It waits for the stream that the
            producer named; without it, `get` waits.

    Returns:
        A NumPy array or a torch tensor, a tree of them, or a CuPy array or tensor over the producer's device memory.

    Raises:
        HandleError: The bytes are damaged.
        StaleHandleError: The array was released.
        ProducerGoneError: The process that put it has ended.
        DeviceUnavailableError: The producer's device cannot be used from this process, or `pin` without a CUDA device.

    Example:
        >>> handle = xfer.put(np.arange(3))
        >>> array = xfer.get(bytes(handle))
        >>> int(array.sum()), array.flags.writeable
        (3, False)
        >>> xfer.get(handle, as_="torch").add_(1)
        tensor([1, 2, 3])
        >>> xfer.release(handle)
    """
    raw = token_bytes(handle, "a Handle")
    check_library(as_, pin)
    array, fields = READER.array(raw, private=as_ == "torch" and not pin)
    return present(array, fields, raw, as_, pin, stream)


def present(
    array: np.ndarray[Any, Any], fields: Fields, raw: bytes, as_: Library, pin: bool = False, stream: Any = None
) -> Any:
    """Return what a leased array stands for: a tree, a device array, or itself, in the library that was asked for."""
    if pin and not fields.flags & CUDA:
        array = pinned(array)
    if not fields.flags & (CUDA | TREE | CONSUME):
        return array if as_ == "numpy" else to_torch(array)[0]
    found = _present(array, fields, raw, as_, stream)
    if fields.flags & CONSUME:
        READER.take_over(fields)  # last: what cannot be read here is not lost
    return found


def _present(array: np.ndarray[Any, Any], fields: Fields, raw: bytes, as_: Library, stream: Any) -> Any:
    if fields.flags & CUDA:
        from xfer._shared.cuda_ipc import open_record

        return open_record(array, raw, as_, stream)
    if fields.flags & TREE:
        return tree.unpack(array, as_)
    return array if as_ == "numpy" else to_torch(array)[0]


def open(handle: Handle | bytes, *, as_: Library = "numpy", pin: bool = False, stream: Any = None) -> View:
    """Like `get`, as a context: `with xfer.open(handle) as array: ...`.

    The lease ends when the block has ended and no view of the array is left, whichever is later: an array that is still
    in use never shows other data.

    Args:
        handle: A `Handle`, or its bytes.
        as_: "numpy" or "torch", as in `get`.
        pin: Copy tensors into pinned memory, as in `get`.
        stream: The stream that uses a CUDA array, as in `get`.

    Example:
        >>> handle = xfer.put(np.arange(3))
        >>> with xfer.open(handle) as array:
        ...     print(array.sum())
        3
        >>> del array
        >>> xfer.release(handle)
    """
    return View(get(handle, as_=as_, pin=pin, stream=stream))


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
    return READER.trim()
