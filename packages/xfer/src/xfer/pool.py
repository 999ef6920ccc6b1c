"""The producer's side: a budgeted pool of sealed segments whose slots are filled, handed out, and used again.

A slot is reused only when the producer has released it and the kernel says that no reader holds a lease on it.
"""

import errno
import os
import secrets
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol
from zlib import crc32

import numpy as np

from xfer import names, native, posix
from xfer.descriptor import (
    CUDA,
    HEADER,
    MAGIC,
    TAIL,
    TOKEN_IN_SLOT,
    VERSION,
    Handle,
    Signature,
    parse,
    signature,
    stamp_of,
)
from xfer.errors import (
    BudgetExceededError,
    DoubleReleaseError,
    ForeignHandleError,
    PoolClosedError,
    UnsupportedDtypeError,
)
from xfer.holdings import Leak, PoolStats
from xfer.interchange import device_of, host_array
from xfer.lease import OFD, Leases
from xfer.loan import Loan
from xfer.reader import READER
from xfer.segment import WORDS, Segment
from xfer.sites import calling_line
from xfer.sizes import SLAB, SMALL, format_size, parse_size, slot_size

Backend = Literal["auto", "nameless", "named"]
_LARGE = 1 << 20
_RECLAIM_STEP = 64
_MASK = (1 << 64) - 1


class _Holder(Protocol):
    """Somebody who retains arrays and can look whether it still has to; a channel's sender."""

    def settle(self) -> None:
        """Release what is not needed any more, without waiting."""
        ...


class _Live(NamedTuple):
    """A filled slot: where it is, and what has to stay alive with it."""

    segment: Segment
    slot: int
    nbytes: int
    keep: object
    site: str
    since: float


class Pool:
    """Shared memory of this process, under a budget.

    Args:
        budget: The most that the pool may reserve, in bytes or as text ("2GiB").
        backend: "nameless" (sealed memfd, Linux), "named" (files in /dev/shm or /tmp, for macOS and systems with a
            closed /proc), or "auto".
        trace: Note where each array was put, for `leaks()`; costs about a microsecond per array.

    Raises:
        UnsupportedPlatformError: The system has no POSIX file locks.
    """

    def __init__(self, budget: int | str = "2GiB", *, backend: Backend = "auto", trace: bool = False) -> None:
        posix.require()
        if backend not in ("auto", "nameless", "named"):
            raise ValueError(f"got backend {backend!r}, want 'auto', 'nameless' or 'named'")
        self.budget = parse_size(budget)
        self.pid = os.getpid()
        self._trace = trace
        self._owner = names.Owner() if backend == "named" or (backend == "auto" and sys.platform != "linux") else None
        self._lock = threading.Lock()
        self._closed = False
        self._segments: dict[int, Segment] = {}
        self._free: dict[int, list[tuple[Segment, int]]] = {}
        self._retired: dict[int, list[tuple[Segment, int, object]]] = {}
        self._reclaim_at: dict[int, int] = {}
        self._holders: weakref.WeakSet[_Holder] = weakref.WeakSet()
        self._live: dict[int, _Live] = {}
        self._lent: dict[int, _Live] = {}
        self._coming: deque[int] = deque()
        self._refs: dict[int, int] = {}
        self._reserved = 0
        self._stamp = secrets.randbits(64)
        self._finalizer = weakref.finalize(self, _close_all, self._segments, self._owner, self.pid)
        _POOLS.add(self)

    def put(self, array: Any, *, timeout: float = 0.0) -> Handle:
        """Copy an array into shared memory and return its handle.

        Args:
            array: A NumPy array, anything with DLPack or the array interface on the host, or a CuPy or torch array on a
                CUDA device, which is not copied but shared by CUDA IPC.
            timeout: Seconds to wait for readers to finish if the budget is spent.

        Returns:
            The handle; the array stays until `release(handle)`.

        Raises:
            UnsupportedDtypeError: The array holds Python objects.
            BudgetExceededError: No room, and nothing came free within `timeout`.
        """
        if type(array) is not np.ndarray:
            device = device_of(array)
            if device != "cpu":
                return self._put_cuda(array)
            array = host_array(array)
        flags = array.flags
        sig = signature(array.dtype, array.shape, flags.f_contiguous and not flags.c_contiguous)
        segment, slot = self._take(sig.slot_bytes, timeout)
        try:
            offset = segment.start + slot * segment.stride
            if native.module is not None and sig.nbytes >= _LARGE and flags.forc:
                native.module.copy(segment.map, offset, array)
            else:
                target = np.ndarray(sig.shape, sig.dtype, segment.map, offset, None, sig.order)
                target[...] = array
            return self._publish(segment, slot, sig, sig.flags, sig.nbytes, None)
        except BaseException:
            self._untake(segment, slot)
            raise

    def loan(self, shape: int | Sequence[int], dtype: Any = np.float64, *, timeout: float = 0.0) -> Loan:
        """Lend a slot to be filled in place: `with pool.loan(shape, dtype) as array: ...`, then `loan.handle`.

        Raises:
            ValueError: A length is negative.
            UnsupportedDtypeError: The dtype holds Python objects.
            BudgetExceededError: No room, and nothing came free within `timeout`.
        """
        shape = (shape,) if isinstance(shape, int) else tuple(int(length) for length in shape)
        if any(length < 0 for length in shape):
            raise ValueError(f"got the shape {shape}, want lengths of 0 and more")
        sig = signature(np.dtype(dtype), shape, False)
        segment, slot = self._take(sig.slot_bytes, timeout)

        def begin() -> np.ndarray[Any, Any]:
            self._check_open()
            return np.ndarray(sig.shape, sig.dtype, segment.map, segment.start + slot * segment.stride)

        def publish() -> Handle:
            return self._publish(segment, slot, sig, sig.flags, sig.nbytes, None)

        return Loan(begin, publish, partial(self._untake, segment, slot))

    def release(self, handle: Handle | bytes) -> None:
        """Let go of an array: its handle is stale from now on, and the slot is reused once no reader looks at it.

        Raises:
            DoubleReleaseError: It was released before.
            ForeignHandleError: The array is in another pool.
        """
        fields = parse(bytes(handle))
        with self._lock:
            self._check_open()
            self._check_live(fields)
            self._drop(fields[13])

    def _release_stamp(self, stamp: int) -> None:
        with self._lock:
            if not self._closed:
                self._drop(stamp)

    def retain(self, handle: Handle | bytes) -> None:
        """Ask that one more `release` be needed, as a channel does for an array in flight.

        Raises:
            DoubleReleaseError: The array was released before.
            ForeignHandleError: The array is in another pool.
        """
        fields = parse(bytes(handle))
        with self._lock:
            self._check_open()
            self._check_live(fields)
            self._refs[fields[13]] = self._refs.get(fields[13], 1) + 1

    def _lend(self, nbytes: int) -> tuple[Segment, int, bytes]:
        """Set memory aside that is no array of the user's: its segment, its place there, and its handle."""
        sig = signature(np.dtype(np.uint8), (nbytes,), False)
        segment, slot = self._take(sig.slot_bytes, 0.0)
        raw = bytes(self._publish(segment, slot, sig, sig.flags, nbytes, None))
        with self._lock:
            stamp = stamp_of(raw)
            self._lent[stamp] = self._live.pop(stamp)
        return segment, segment.start + slot * segment.stride, raw

    def _take_back(self, stamp: int) -> None:
        # May run when a sender is collected, perhaps inside our own locked part: then the next request does the work.
        self._coming.append(stamp)
        if self._lock.acquire(blocking=False):
            try:
                self._receive()
            finally:
                self._lock.release()

    def _receive(self) -> None:
        while self._coming:
            lent = self._lent.pop(self._coming.popleft(), None)
            if lent is not None and not self._closed:
                self._retire(lent)

    def stats(self) -> PoolStats:
        """Return what the pool holds now."""
        with self._lock:
            self._receive()
            for size in list(self._retired):
                self._reclaim(size)
            return PoolStats(
                budget=self.budget,
                reserved=self._reserved,
                segments=len(self._segments),
                live=len(self._live),
                live_bytes=sum(live.nbytes for live in self._live.values()),
                waiting_for_readers=sum(map(len, self._retired.values())),
                free_slots=sum(map(len, self._free.values())),
            )

    def leaks(self, older_than: float = 0.0) -> list[Leak]:
        """List arrays that were put and not released, oldest first; `site` needs a pool with `trace`."""
        now = time.monotonic()
        with self._lock:
            return [
                Leak(live.nbytes, now - live.since, self._leased(live.segment, live.slot, 1), live.site)
                for live in sorted(self._live.values(), key=lambda live: live.since)
                if now - live.since >= older_than
            ]

    @property
    def closed(self) -> bool:
        """Whether the pool was closed, or belongs to the process that this one was forked from."""
        return self._closed

    def trim(self) -> int:
        """Give memory that nobody uses back to the system; return the bytes."""
        with self._lock:
            self._check_open()
            self._receive()
            return self._trim()

    def close(self) -> None:
        """Make every handle stale and give the memory back. Arrays that readers hold stay valid for them."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for live in (*self._live.values(), *self._lent.values()):
                live.segment.words[WORDS + 2 * live.slot] = 0
            self._live.clear()
            self._finalizer()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{format_size(self._reserved)} of {format_size(self.budget)}"
        return f"<xfer.Pool {state}, {len(self._live)} arrays>"

    def _put_cuda(self, array: Any) -> Handle:
        from xfer.cuda_ipc import describe

        record, dtype, shape, keep = describe(array)
        sig = signature(dtype, shape, False)
        if sig.flags & TOKEN_IN_SLOT:
            raise UnsupportedDtypeError(f"{dtype} is too long to describe in a handle of a device array")
        segment, slot = self._take(len(record), 0.0)
        offset = segment.start + slot * segment.stride
        segment.map[offset : offset + len(record)] = record
        return self._publish(segment, slot, sig, sig.flags | CUDA, len(record), keep)

    def _publish(self, segment: Segment, slot: int, sig: Signature, flags: int, nbytes: int, keep: object) -> Handle:
        token = sig.token
        if flags & TOKEN_IN_SLOT:
            offset = segment.start + slot * segment.stride + nbytes
            segment.map[offset : offset + len(token)] = token
        with self._lock:
            self._check_open()
            stamp = self._stamp = (self._stamp + 0x9E3779B97F4A7C15) & _MASK or 1
            body = (
                HEADER.pack(
                    MAGIC, VERSION, flags, sig.ndim, 0, len(token), self.pid, segment.handle_fd, segment.id,
                    segment.inode, slot, 0, nbytes, stamp,
                )
                + sig.meta
            )  # fmt: skip
            check = crc32(body)
            index = WORDS + 2 * slot
            segment.words[index + 1] = check
            segment.words[index] = stamp
            self._live[stamp] = _Live(
                segment, slot, nbytes, keep, calling_line() if self._trace else "", time.monotonic()
            )
        return Handle(body + TAIL.pack(check))

    def _take(self, nbytes: int, timeout: float) -> tuple[Segment, int]:
        size = slot_size(nbytes)
        with self._lock:
            free = self._free.get(size)
            if len(self._retired.get(size, ())) >= self._reclaim_at.get(size, _RECLAIM_STEP):
                self._reclaim(size)  # used memory before new memory: it is in the cache and has its pages
            if free and not self._closed:
                return free.pop()
            self._check_open()
        for holder in tuple(self._holders):
            holder.settle()  # before more memory is taken: arrays in flight may have arrived
        with self._lock:
            self._check_open()
            self._receive()
            found = self._find(size)
        if found is not None:
            return found
        deadline, pause = time.monotonic() + timeout, 0.0001
        while time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(2 * pause, 0.005)
            with self._lock:
                self._check_open()
                found = self._find(size)
            if found is not None:
                return found
        available = self.budget - self._reserved
        waiting = sum(map(len, self._retired.values()))
        raise BudgetExceededError(
            f"asked for {format_size(size)} and {format_size(available)} of the {format_size(self.budget)} budget are "
            f"left; {len(self._live)} arrays are not released and {waiting} wait for readers: release some, raise "
            "the budget, or give a timeout",
            asked=size,
            available=available,
        )

    def _find(self, size: int) -> tuple[Segment, int] | None:
        free = self._free.setdefault(size, [])
        if not free and self._retired.get(size):
            self._reclaim(size)
        if not free and not self._grow(size) and self._trim():
            self._grow(size)
        return free.pop() if free else None

    def _grow(self, size: int) -> bool:
        room = self.budget - self._reserved
        slots = 1
        if size <= SMALL:
            slots = max(1, min(SLAB, self.budget // 8, room) // size)
        if slots * size > room:
            return False
        try:
            segment = Segment(size, slots, self._owner.name if self._owner else None)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM):
                raise
            raise BudgetExceededError(
                f"asked the system for {format_size(size * slots)}, which has no shared memory left ({error.strerror})",
                asked=size * slots,
                available=names.room(),
            ) from error
        self._segments[segment.id] = segment
        self._reserved += size * slots
        self._free[size].extend((segment, slot) for slot in range(slots - 1, -1, -1))
        segment.populate(size * slots if size > SMALL else 0)
        return True

    def _reclaim(self, size: int) -> None:
        """Free released slots without readers: one question per segment, or per slot if some are leased."""
        by_segment: dict[int, list[tuple[Segment, int, object]]] = {}
        for entry in self._retired[size]:
            by_segment.setdefault(entry[0].id, []).append(entry)
        waiting, free = [], self._free.setdefault(size, [])
        for entries in by_segment.values():
            segment = entries[0][0]
            if len(entries) > 1 and not self._leased(segment, 0, segment.slots):
                free.extend((segment, slot) for _, slot, _ in entries)
                continue
            for entry in entries:
                if self._leased(segment, entry[1], 1):
                    waiting.append(entry)
                else:
                    free.append((segment, entry[1]))
        self._retired[size] = waiting
        self._reclaim_at[size] = len(waiting) + _RECLAIM_STEP

    def _leased(self, segment: Segment, first: int, count: int) -> bool:
        if not OFD and any(READER.leases(segment.id, slot) for slot in range(first, first + count)):
            return True
        return Leases.held(segment.fd, first, count)

    def _trim(self) -> int:
        freed = 0
        for size, free in self._free.items():
            if self._retired.get(size):
                self._reclaim(size)
            idle: dict[int, int] = {}
            for segment, _ in free:
                idle[segment.id] = idle.get(segment.id, 0) + 1
            gone = {key for key, count in idle.items() if count == self._segments[key].slots}
            if gone:
                free[:] = [entry for entry in free if entry[0].id not in gone]
            for key in gone:
                segment = self._segments.pop(key)
                freed += segment.stride * segment.slots
                segment.close()
        self._reserved -= freed
        return freed

    def _drop(self, stamp: int) -> None:
        refs = self._refs.get(stamp, 1) - 1
        if refs > 0:
            self._refs[stamp] = refs
            return
        live = self._live.pop(stamp, None)
        if live is None:
            raise DoubleReleaseError("the array was released before")
        self._refs.pop(stamp, None)
        self._retire(live)

    def _retire(self, live: _Live) -> None:
        # First make the handle stale, then (later) look for leases: a reader does it in the opposite order.
        live.segment.words[WORDS + 2 * live.slot] = 0
        self._retired.setdefault(live.segment.stride, []).append((live.segment, live.slot, live.keep))

    def _check_live(self, fields: Sequence[Any]) -> None:
        pid, segment, stamp = fields[6], fields[8], fields[13]
        if stamp in self._live:
            return
        arrays_ago = (self._stamp - stamp) * pow(0x9E3779B97F4A7C15, -1, 1 << 64) & _MASK  # if the stamp is ours
        if pid == self.pid and (segment in self._segments or arrays_ago < 1 << 48):
            raise DoubleReleaseError("the array was released before")
        raise ForeignHandleError(f"the handle is of another pool (process {pid})")

    def _untake(self, segment: Segment, slot: int) -> None:
        with self._lock:
            if not self._closed:
                self._free[segment.stride].append((segment, slot))

    def _check_open(self) -> None:
        if self._closed:
            here = os.getpid()
            why = (
                "the pool is closed" if here == self.pid else f"the pool belongs to process {self.pid}, this is {here}"
            )
            raise PoolClosedError(f"{why}: make a new one")

    def _after_fork_in_child(self) -> None:
        self._lock = threading.Lock()
        if not self._closed:
            self._closed = True
            self._finalizer.detach()
            for segment in self._segments.values():
                segment.disown()
            if self._owner is not None:
                os.close(self._owner.fd)


def _close_all(segments: dict[int, Segment], owner: "names.Owner | None", pid: int) -> None:
    if os.getpid() != pid:
        return
    for segment in segments.values():
        segment.close()
    segments.clear()
    if owner is not None:
        owner.close()


_POOLS: "weakref.WeakSet[Pool]" = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for pool in list(_POOLS):
        pool._after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
