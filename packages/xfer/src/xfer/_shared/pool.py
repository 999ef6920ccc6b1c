# long because one lock guards what these methods share: putting, lending, releasing and closing
"""The producer's side: a budgeted pool of sealed segments whose slots are filled, handed out, and used again.

A slot is reused only when the producer has released it and the kernel reports that no reader holds a lease on it.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple
from zlib import crc32

import numpy as np

from xfer import _compiled
from xfer._arguments import lengths, token_bytes
from xfer._callsite import calling_line
from xfer._convert.interchange import device_of, host_array
from xfer._deferred import Deferred
from xfer._forks import on_fork
from xfer._locks import claim
from xfer._shared import names, tree
from xfer._shared.bequest import leave_at_exit
from xfer._shared.handle import (
    CONSUME,
    CUDA,
    HEADER,
    TAIL,
    TOKEN_IN_SLOT,
    TREE,
    Fields,
    Handle,
    Signature,
    parse,
    signature,
)
from xfer._shared.holdings import Leak, Lent, PoolStats
from xfer._shared.lease import require_locks
from xfer._shared.linger import close_at_exit, linger, watch
from xfer._shared.loan import Loan
from xfer._shared.memory import nameless_works
from xfer._shared.segment import Segment
from xfer._shared.slots import Place, Slots
from xfer._sizes import format_size, parse_size
from xfer._times import deadline, left
from xfer._weak_methods import WeakMethods
from xfer.errors import (
    BudgetExceededError,
    DoubleReleaseError,
    ForeignHandleError,
    PoolClosedError,
    UnsupportedDtypeError,
    UnsupportedPlatformError,
)

Backend = Literal["auto", "nameless", "named"]
_LARGE = 1 << 20
_MASK = (1 << 64) - 1


class _Live(NamedTuple):
    """A slot that was taken, and what has to stay alive with it."""

    place: Place
    nbytes: int
    site: str
    since: float
    keep: Any = None
    views: weakref.ref[Any] | None = None
    consume: bool = False


class Pool:  # long because the argument texts of the public methods are in it
    """Shared memory of this process, under a budget.

    Args:
        budget: The most bytes that the pool's arrays may need together, in bytes or as text ("2GiB"). An array that is
            released counts until no reader has it.
        backend: "nameless" (sealed memfd, Linux), "named" (files in /dev/shm or /tmp, for macOS and systems with a
            closed /proc), or "auto", which is nameless where that works.
        trace: Record where each array was put, for `leaks()`; costs about a microsecond per array.

    Raises:
        UnsupportedPlatformError: The system has no POSIX file locks.

    Example:
        >>> pool = xfer.Pool("64MiB")
        >>> handle = pool.put(np.arange(3))
        >>> xfer.get(handle)
        array([0, 1, 2])
        >>> pool.release(handle)
        >>> pool.close()
    """

    def __init__(self, budget: int | str = "2GiB", *, backend: Backend = "auto", trace: bool = False) -> None:
        require_locks()
        if backend not in ("auto", "nameless", "named"):
            raise ValueError(f"got backend {backend!r}, want 'auto', 'nameless' or 'named'")
        self.budget: int = parse_size(budget)
        self.pid: int = os.getpid()
        self._trace = trace
        self._owner = names.Owner() if backend == "named" or (backend == "auto" and not nameless_works()) else None
        self._lock = threading.Lock()
        self._closed = False
        self._slots = Slots(self.budget, self._owner.name if self._owner else None)
        self._live: dict[int, _Live] = {}
        self._lent: dict[int, Place] = {}
        self._loans: dict[int, _Live] = {}
        self._refs: dict[int, int] = {}
        self._deferred: Deferred[Callable[[], None]] = Deferred(self._lock, lambda work: work())
        self._under_pressure = WeakMethods()
        self._stamp = secrets.randbits(64)
        self._filled = 0
        self._finalizer = weakref.finalize(self, _close_all, self._slots, self._live, self._owner, self.pid)
        self._finalizer.atexit = False
        close_at_exit(self)  # with its lock held, since other threads still run
        self._device_bytes = 0  # of CUDA arrays that are live
        self._watched = False  # whether released CUDA arrays are looked at until no reader leases them
        on_fork(child=self._after_fork_in_child)

    def put(self, array: Any, *, timeout: float | None = 0.0, consume: bool = False, stream: Any = None) -> Handle:
        """Copy an array, or a tree of arrays, into shared memory and return its handle.

        Args:
            array: A NumPy array, a torch tensor, anything with DLPack or the array interface on the host; a CuPy or
                torch array on a CUDA device, which is not copied but shared by CUDA IPC; or a tree: a dict, list,
                tuple, named tuple or dataclass of these and of plain values, which takes one slot.
            timeout: Seconds to wait for readers to finish if the budget is spent; None waits for ever.
            consume: The first reader takes the array over: the slot comes back when that reader is done, and no
                `release` is needed.
            stream: The stream of CuPy or torch, or its address, on which a CUDA array was last written. The reader
                waits for it, and `put` returns at once; without it, `put` waits for all work of the array's device.

        Returns:
            The handle; the array stays until `release(handle)`, or until it is consumed.

        Raises:
            UnsupportedDtypeError: The array holds Python objects.
            BudgetExceededError: No room, and nothing came free within `timeout`.
            TooManyOpenFilesError: No descriptor is left for a new segment.
            UnsupportedPlatformError: `consume` where `/proc` is closed.
        """
        flags = CONSUME if consume else 0
        if type(array) is not np.ndarray:
            if tree.is_tree(array):
                packed = tree.pack(array)
                return self._put_with(packed.signature(), packed.write, timeout, flags | TREE)
            device = device_of(array)
            if device != "cpu":
                return self._put_cuda(array, flags, stream)
            array = host_array(array)
        layout = array.flags
        sig = signature(array.dtype, array.shape, layout.f_contiguous and not layout.c_contiguous)

        def write(memory: Any, offset: int) -> None:
            if _compiled.module is not None and sig.nbytes >= _LARGE and layout.forc:
                _compiled.module.copy(memory, offset, array)
            else:
                np.ndarray(sig.shape, sig.dtype, memory, offset, None, sig.order)[...] = array

        return self._put_with(sig, write, timeout, flags)

    def loan(self, shape: int | Sequence[int], dtype: Any = np.float64, *, timeout: float | None = 0.0) -> Loan:
        """Lend a slot to be filled in place: `with pool.loan(shape, dtype) as array: ...`, then `loan.handle`.

        Args:
            shape: The array's shape.
            dtype: Its data type.
            timeout: Seconds to wait for readers to finish if the budget is spent; None waits for ever.

        Raises:
            ValueError: A length is negative or no whole number.
            UnsupportedDtypeError: The dtype holds Python objects.
            BudgetExceededError: No room, and nothing came free within `timeout`.
        """
        sig = signature(np.dtype(dtype), lengths(shape), False)
        place = self._take(sig.slot_bytes, timeout)
        # Every view of the loan's array has this one as its base, so it lives as long as any of them.
        memory: np.ndarray[Any, Any] = np.ndarray((sig.nbytes,), np.uint8, place.segment.map, place.offset)
        views = weakref.ref(memory)
        key = id(views)
        self._loans[key] = _Live(place, sig.nbytes, calling_line() if self._trace else "", time.monotonic())
        held = [memory]  # until the array has it

        def begin() -> np.ndarray[Any, Any]:
            self._check_open()
            return np.ndarray(sig.shape, sig.dtype, held.pop())

        def publish() -> Handle:
            handle = self._publish(place, sig, sig.nbytes, views=views)
            self._loans.pop(key, None)
            return handle

        def give_back() -> None:
            if self._loans.pop(key, None) is not None and not self._closed:
                self._slots.retire(place, None, views)

        def cancel() -> None:
            held.clear()
            self._deferred.note(give_back)

        return Loan(begin, publish, cancel)

    def release(self, handle: Handle | bytes) -> None:
        """Release an array: its handle is stale from now on, and the slot is reused once no reader leases it.

        Args:
            handle: The array's handle, or its bytes.

        Raises:
            DoubleReleaseError: It was released before.
            ForeignHandleError: The array is in another pool.
        """
        fields = parse(token_bytes(handle, "a Handle"))
        with self._lock:
            self._check_open()
            self._deferred.drain()
            self._check_live(fields)
            self._drop(fields.stamp)

    def release_later(self, handle: Handle | bytes) -> None:
        """Release an array without waiting for the pool and without an error; a finalizer may call it.

        Args:
            handle: The array's handle, or its bytes.
        """
        stamp = parse(token_bytes(handle, "a Handle")).stamp
        self._deferred.note(partial(self._drop_if_live, stamp))

    def retain(self, handle: Handle | bytes) -> None:
        """Require one more release of an array, as a channel does while the array is in flight.

        Args:
            handle: The array's handle, or its bytes.

        Raises:
            DoubleReleaseError: The array was released before.
            ForeignHandleError: The array is in another pool.
        """
        fields = parse(token_bytes(handle, "a Handle"))
        with self._lock:
            self._check_open()
            self._check_live(fields)
            self._refs[fields.stamp] = self._refs.get(fields.stamp, 1) + 1

    def lend(self, nbytes: int) -> Lent:
        """Lend memory that is not an array of the user's; it stays until `Lent.give_back()`.

        Args:
            nbytes: How much.

        Raises:
            BudgetExceededError: No room.
        """
        sig = signature(np.dtype(np.uint8), (nbytes,), False)
        place = self._take(sig.slot_bytes, 0.0)
        handle = self._publish(place, sig, nbytes)
        stamp = parse(bytes(handle)).stamp
        with self._lock:
            del self._live[stamp]
            self._lent[stamp] = place
        give_back = partial(self._deferred.note, partial(self._take_back, stamp))
        return Lent(place.segment.map, place.offset, nbytes, handle, give_back)

    def on_pressure(self, callback: Callable[[], None]) -> None:
        """Call a bound method before the pool reserves more memory, for as long as the method's object lives.

        `stats`, `leaks` and `trim` call it as well.

        Args:
            callback: Releases what its object no longer needs, without waiting.
        """
        self._under_pressure.add(callback)

    def stats(self) -> PoolStats:
        """Return what the pool holds now."""
        self._under_pressure()
        with self._lock:
            self._settle()
            slots = self._slots
            slots.reclaim()
            return PoolStats(
                budget=self.budget,
                used=slots.used,
                reserved=slots.reserved,
                segments=len(slots.segments),
                live=len(self._live),
                live_bytes=sum(live.nbytes for live in self._live.values()),
                waiting_for_readers=slots.waiting,
                free_slots=slots.free,
                device_bytes=self._device_bytes + sum(entry.keep.nbytes for entry in slots.kept()),
            )

    def leaks(self, older_than: float = 0.0) -> list[Leak]:
        """List arrays that were put and not released, and loans that are not finished, oldest first.

        Args:
            older_than: Seconds; younger arrays are left out.

        Returns:
            The leaks; `site` is known in a pool with `trace`.
        """
        self._under_pressure()
        now = time.monotonic()
        with self._lock:
            self._settle()
            return [
                Leak(live.nbytes, now - live.since, self._slots.leased(live.place), live.site)
                for live in sorted((*self._live.values(), *self._loans.values()), key=lambda live: live.since)
                if now - live.since >= older_than
            ]

    @property
    def closed(self) -> bool:
        """Whether the pool was closed, or belongs to the process that this one was forked from."""
        return self._closed

    def trim(self) -> int:
        """Give unused memory back to the system; return the bytes."""
        self._under_pressure()
        with self._lock:
            self._check_open()
            self._settle()
            return self._slots.trim()

    def close(self) -> None:
        """Make every handle stale and give the memory back. Arrays that readers hold stay valid for them.

        A CUDA array that a reader holds is kept until the reader is done.
        """
        with self._lock:
            if self._closed:
                return
            self._deferred.drain()
            self._closed = True
            for place in self._lent.values():
                place.clear()
            if self._finalizer.detach() is not None:  # it does nothing itself after weakref's function of atexit
                _close_all(self._slots, self._live, self._owner, self.pid)

    def bequeath(self) -> list[Segment]:
        """Close, and return the segments with arrays that wait to be taken over, still open; at exit only."""
        with self._lock:
            if self._closed or os.getpid() != self.pid:
                return []
            self._settle()
            waiting = {
                live.place.segment.id: live.place.segment
                for live in self._live.values()
                if live.consume and live.keep is None and live.place.segment.path is None
            }
            for stamp, live in list(self._live.items()):
                if live.keep is None:  # arrays of a device are retired as in `close`
                    if not live.consume:
                        live.place.clear()
                    del self._live[stamp]
            for place in self._lent.values():
                place.clear()
            for segment in waiting.values():
                del self._slots.segments[segment.id]
            self._closed = True
        return list(waiting.values())

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle a Pool: pass handles on, or make another pool in the other process")

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        used = f"{format_size(self._slots.used)} of {format_size(self.budget)}"
        return f"<xfer.Pool {'closed' if self._closed else used}, {len(self._live)} arrays>"

    def _put_with(
        self, sig: Signature, write: Callable[[Any, int], None], timeout: float | None, flags: int, keep: object = None
    ) -> Handle:
        place = self._take(sig.slot_bytes, timeout)
        try:
            write(place.segment.map, place.offset)
            return self._publish(place, sig, sig.nbytes, flags, keep)
        except BaseException:
            with self._lock:
                if not self._closed:
                    self._withdraw(place)
            raise

    def _withdraw(self, place: Place) -> None:
        """Take back a slot whose handle nobody has; a signal handler may have raised after it was published."""
        stamp = next((stamp for stamp, live in self._live.items() if live.place is place), None)
        if stamp is None:
            self._slots.put_back(place)
        else:
            self._drop(stamp)

    def _put_cuda(self, array: Any, flags: int, stream: Any) -> Handle:
        from xfer._shared.cuda_ipc import describe

        shared = describe(array, stream)
        sig = signature(shared.dtype, shared.shape, shared.fortran)
        if sig.flags & TOKEN_IN_SLOT:
            raise UnsupportedDtypeError(f"{shared.dtype} is too long to describe in a handle of a device array")
        size = len(shared.record)
        place = self._take(size, 0.0)
        place.segment.map[place.offset : place.offset + size] = shared.record
        handle = self._publish(place, sig, size, flags | CUDA, shared.kept)
        with self._lock:
            self._device_bytes += shared.kept.nbytes
        return handle

    def _publish(
        self,
        place: Place,
        sig: Signature,
        nbytes: int,
        flags: int = 0,
        keep: Any = None,
        views: weakref.ref[Any] | None = None,
    ) -> Handle:
        segment = place.segment
        if sig.flags & TOKEN_IN_SLOT:
            offset = place.offset + nbytes
            segment.map[offset : offset + len(sig.token)] = sig.token
        with self._lock:
            self._check_open()
            if flags & CONSUME:
                if self._owner is not None and not nameless_works():
                    raise UnsupportedPlatformError(
                        "consume=True needs memfd and an open /proc: release the array instead"
                    )
                segment.keep_ledger()
                leave_at_exit(self)
            stamp = self._stamp = (self._stamp + 1) & _MASK or 1
            self._filled += 1
            fields = Fields(
                flags=sig.flags | flags, ndim=sig.ndim, token_length=len(sig.token), pid=self.pid, fd=segment.handle_fd,
                segment=segment.id, inode=segment.inode, slot=place.slot, nbytes=nbytes, stamp=stamp,
            )  # fmt: skip
            body = HEADER.pack(*fields) + sig.meta
            check = crc32(body)
            place.mark(stamp, check)
            self._live[stamp] = _Live(
                place, sig.nbytes if flags & CUDA else nbytes, calling_line() if self._trace else "", time.monotonic(),
                keep, views, bool(flags & CONSUME),
            )  # fmt: skip
        return Handle(body + TAIL.pack(check))

    def _take(self, nbytes: int, timeout: float | None) -> Place:
        with self._lock:
            place = None if self._closed else self._slots.take_ready(nbytes)
            if place is not None:
                return place
            self._check_open()
        self._under_pressure()  # before more memory is taken: arrays in flight may have arrived
        end, pause = deadline(timeout), 0.0001
        while True:
            with self._lock:
                self._check_open()
                self._settle()
                place = self._slots.take(nbytes)
            if place is not None:
                return place
            if left(end) == 0:
                raise self._no_room(nbytes)
            time.sleep(pause)
            pause = min(2 * pause, 0.005)

    def _settle(self) -> None:
        self._deferred.drain()
        for segment in self._slots.segments.values():
            for stamp in segment.ledger.taken() if segment.ledger is not None else ():
                live = self._live.get(stamp)
                if live is not None and live.consume:
                    self._drop(stamp)

    def _no_room(self, nbytes: int) -> BudgetExceededError:
        available = self.budget - self._slots.used
        return BudgetExceededError(
            f"asked for {format_size(nbytes)}, but {format_size(available)} of the {format_size(self.budget)} budget "
            f"are left; {len(self._live)} arrays are not released and {self._slots.waiting} wait for readers: release "
            "some, raise the budget, or give a timeout",
            asked=nbytes,
            available=available,
        )

    def _drop(self, stamp: int) -> None:
        refs = self._refs.get(stamp, 1) - 1
        if refs > 0:
            self._refs[stamp] = refs
            return
        live = self._live.pop(stamp, None)
        if live is None:
            raise DoubleReleaseError("the array was released before")
        self._refs.pop(stamp, None)
        self._slots.retire(live.place, live.keep, live.views)
        if live.keep is not None:
            self._device_bytes -= live.keep.nbytes
            if not self._watched and self._slots.kept():
                self._watched = True
                watch(partial(_kept_no_more, weakref.ref(self)))

    def reclaim_kept(self) -> bool:
        """Let go of released CUDA arrays that no reader leases; return whether none is left.

        Another thread calls it from time to time, until it returns True.
        """
        taken: list[bool] = []
        try:
            if not claim(self._lock, taken):
                return False
            if not self._closed:
                self._slots.reclaim()
                self._watched = bool(self._slots.kept())
            return self._closed or not self._watched
        finally:
            if taken == [True]:
                self._lock.release()

    def _drop_if_live(self, stamp: int) -> None:
        if not self._closed and stamp in self._live:
            self._drop(stamp)

    def _take_back(self, stamp: int) -> None:
        place = self._lent.pop(stamp, None)
        if place is not None and not self._closed:
            self._slots.retire(place)

    def _check_live(self, fields: Fields) -> None:
        if fields.stamp in self._live:
            return
        was_ours = (self._stamp - fields.stamp) & _MASK < self._filled
        if fields.pid == self.pid and (was_ours or fields.segment in self._slots.segments):
            raise DoubleReleaseError("the array was released before")
        raise ForeignHandleError(f"the handle belongs to another pool (process {fields.pid})")

    def _check_open(self) -> None:
        if self._closed:
            here = os.getpid()
            why = (
                "the pool is closed" if here == self.pid else f"the pool belongs to process {self.pid}, this is {here}"
            )
            raise PoolClosedError(f"{why}: make a new one")

    def _after_fork_in_child(self) -> None:
        self._lock = threading.Lock()
        self._deferred = Deferred(self._lock, lambda work: work())
        if not self._closed:
            self._closed = True
            self._finalizer.detach()
            for segment in self._slots.segments.values():
                segment.disown()
            if self._owner is not None:
                os.close(self._owner.fd)


def _kept_no_more(reference: weakref.ref[Pool]) -> bool:
    pool = reference()
    return pool is None or pool.reclaim_kept()


def _close_all(slots: Slots, live: dict[int, _Live], owner: names.Owner | None, pid: int) -> None:
    if os.getpid() != pid:
        return
    for entry in live.values():
        slots.retire(entry.place, entry.keep)
    live.clear()
    kept = slots.kept()
    held = {entry.place.segment.id for entry in kept}
    for segment in slots.segments.values():
        if segment.id not in held:
            segment.close()
    if kept:
        linger(slots, kept)
    slots.forget()
    if owner is not None:
        owner.close()
