"""A bounded stream of arrays from one process to another, with back-pressure; knows the pool, the reader and the ring.

What travels is a handle. The sender keeps each array until the receiver has leased it, so an array is never lost in
between and its slot comes back when the last view of it is gone, or when the receiver's process ends.
"""

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

from xfer.default import default_pool
from xfer.descriptor import CUDA, Handle, stamp_of
from xfer.errors import (
    BudgetExceededError,
    ChannelClosedError,
    EndpointTakenError,
    PeerDiedError,
    ProducerGoneError,
    StaleHandleError,
    WaitTimeoutError,
)
from xfer.pool import Pool
from xfer.reader import READER
from xfer.ring import HEAD, RECEIVER_PID, SENDER_PID, TAIL, Ring, RingOwner

SPIN = 200e-6
_LARGE = 64 << 10


class _Endpoint:
    """What both ends share: they are tokens until first used, and then belong to the process that used them."""

    _sending: bool

    def __init__(self, token: bytes, spin: float = SPIN) -> None:
        self._token = token
        self._spin = spin if (os.cpu_count() or 1) > 1 else 0.0
        self._ring: Ring | None = None
        self._lock = threading.Lock()
        self._closed = False
        _ENDPOINTS.add(self)

    def __bytes__(self) -> bytes:
        return self._token

    def __reduce__(self) -> tuple[Any, tuple[bytes, float]]:
        return type(self), (self._token, self._spin)

    @classmethod
    def from_bytes(cls, token: bytes) -> Any:
        """Return this end from its bytes, as made by `bytes(endpoint)`."""
        return cls(bytes(token))

    def attach(self) -> None:
        """Take this end for this process; done by the first use anyway.

        Raises:
            EndpointTakenError: Another process holds it.
            ProducerGoneError: The channel is gone.
        """
        if self._closed:
            raise ChannelClosedError("this end is closed")
        if self._ring is None:
            try:
                self._ring = Ring(self._token, self._sending)
            except BlockingIOError as error:
                name = "sending" if self._sending else "receiving"
                raise EndpointTakenError(f"the {name} end is held already: make one channel for each pair") from error

    def _after_fork_in_child(self) -> None:
        self._lock = threading.Lock()
        if self._ring is not None:
            self._ring.close()
            self._ring, self._closed = None, True

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        raise NotImplementedError


class Sender(_Endpoint):
    """The end that sends; `bytes(sender)` or pickling takes it to another process before its first use."""

    _sending = True
    _pool: Pool | None = None

    def __init__(self, token: bytes, spin: float = SPIN, pool: Pool | None = None) -> None:
        super().__init__(token, spin)
        self._pool = pool
        self._flying: deque[tuple[Pool, int]] = deque()
        self._fence = threading.Lock()
        self._joined: Pool | None = None

    def send(self, array: Any, *, timeout: float | None = None) -> None:
        """Send an array, waiting while the channel is full or the pool's budget is spent.

        Args:
            array: Whatever `Pool.put` takes, or a `Handle` of this end's pool (not copied again: that is how to
                send one array to many).
            timeout: Seconds to wait for room; None waits for ever.

        Raises:
            WaitTimeoutError: No room in time.
            PeerDiedError: The receiver's process has ended.
            ChannelClosedError: The receiver, or this end, has closed.
        """
        end = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            if self._ring is None:
                self.attach()
            ring = self._ring
            assert ring is not None
            while len(self._flying) >= ring.capacity:
                self._wait(ring, end)
            pool = self._pool
            if pool is None or pool.closed:
                pool = self._pool = default_pool()
            if self._joined is not pool:
                pool._holders.add(self)
                self._joined = pool
            if isinstance(array, Handle):
                pool.retain(array)
                raw = bytes(array)
            else:
                if getattr(array, "nbytes", 0) >= _LARGE:
                    self._settle(ring)  # first, to fill again memory that is mapped and in the cache
                raw = self._put(pool, ring, array, end)
            if ring.peer_closed():
                pool._release_stamp(stamp_of(raw))
                self._gone(ring)
            self._flying.append((pool, stamp_of(raw)))
            ring.write(raw)
            # A lock is an atomic operation, which puts the stores above before the look at the waiting flag.
            with self._fence:
                pass
            ring.ring_if_waiting()
            self._settle(ring)  # last, while the receiver is at work already

    def settle(self) -> None:
        """Release arrays that the receiver has taken; every `send` does so anyway."""
        if self._ring is not None and self._lock.acquire(blocking=False):
            try:
                if self._ring is not None:
                    self._settle(self._ring)
            finally:
                self._lock.release()

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the receiver has taken everything.

        Raises:
            WaitTimeoutError: It did not in time.
            PeerDiedError: The receiver's process has ended.
        """
        end = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            if self._ring is not None:
                self._settle(self._ring)
                while self._flying:
                    self._wait(self._ring, end)

    def close(self, timeout: float | None = None) -> None:
        """Wait until the receiver has taken everything, then tell it that no more comes.

        Raises:
            WaitTimeoutError: The receiver did not take it in time; the channel is closed all the same.
        """
        if self._closed:
            return
        try:
            self.attach()
            self.flush(timeout)
        except (ChannelClosedError, ProducerGoneError):
            pass  # nobody is left to take it
        finally:
            self._closed = True
            with self._lock:
                if self._ring is not None:
                    self._ring.say_closed()
                self._drop_flying()
                if self._ring is not None:
                    self._ring.close()
                    self._ring = None

    def _put(self, pool: Pool, ring: Ring, array: Any, end: float | None) -> bytes:
        while True:
            try:
                return bytes(pool.put(array))
            except BudgetExceededError as error:
                if error.asked > pool.budget:
                    raise
                if not self._flying:
                    # Everything is taken, but views of it are still alive over there: nothing will ring, so look often.
                    if end is not None and time.monotonic() >= end:
                        raise WaitTimeoutError("the receiver still looks at all that the budget holds") from error
                    if ring.peer_closed() or ring.peer_dead():
                        self._gone(ring)
                    time.sleep(0.001)
                else:
                    self._wait(ring, end)

    def _wait(self, ring: Ring, end: float | None) -> None:
        before = len(self._flying)
        self._settle(ring)
        if len(self._flying) < before:
            return
        tail = ring.words[TAIL]
        if ring.words[HEAD] - tail == len(self._flying) and not ring.spin(TAIL, tail, self._spin):
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise WaitTimeoutError(f"the receiver took nothing in time; {len(self._flying)} arrays are waiting")
            ring.wait(TAIL, tail, left)
            if ring.words[TAIL] == tail and (ring.peer_closed() or ring.peer_dead()):
                self._gone(ring)
        self._settle(ring)

    def _gone(self, ring: Ring) -> None:
        self._drop_flying()
        if ring.peer_closed():
            raise ChannelClosedError("the receiver has closed the channel")
        raise PeerDiedError(
            f"the receiver's process {ring.words[RECEIVER_PID]} has ended; arrays in flight are released"
        )

    def _settle(self, ring: Ring) -> None:
        waiting = ring.words[HEAD] - ring.words[TAIL]
        while len(self._flying) > waiting:
            pool, stamp = self._flying.popleft()
            pool._release_stamp(stamp)

    def _drop_flying(self) -> None:
        while self._flying:
            pool, stamp = self._flying.popleft()
            pool._release_stamp(stamp)


class Receiver(_Endpoint):
    """The end that receives; iterate over it, or call `recv`."""

    _sending = False

    def recv(self, *, timeout: float | None = None) -> Any:
        """Return the next array: no copy, read-only, its slot taken until the last view of it is gone.

        Args:
            timeout: Seconds to wait; None waits for ever.

        Raises:
            WaitTimeoutError: Nothing came in time.
            ChannelClosedError: The sender has closed and everything was taken.
            PeerDiedError: The sender's process has ended.
        """
        end = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            if self._ring is None:
                self.attach()
            ring = self._ring
            assert ring is not None
            words = ring.words
            tail = words[TAIL]
            if words[HEAD] == tail and not ring.spin(HEAD, tail, self._spin):
                self._wait(ring, tail, end)
            raw = ring.peek()
            try:
                array, flags = READER.array(raw)
            except ProducerGoneError as error:
                raise PeerDiedError(f"the sender's process has ended and its memory with it: {error}") from error
            except StaleHandleError as error:
                if ring.peer_closed():
                    raise ChannelClosedError("the sender gave up waiting and took its arrays back") from error
                raise
            finally:
                words[TAIL] = tail + 1
            left = words[HEAD] - tail - 1
        # A sender that sleeps before a full ring is woken at half of it, not once for each message.
        if 2 * left <= ring.capacity:
            ring.ring_if_waiting()
        if flags & CUDA:
            from xfer.cuda_ipc import open_record

            return open_record(array, raw)
        return array

    def __iter__(self) -> Iterator[Any]:
        while True:
            try:
                array = self.recv()
            except PeerDiedError:
                raise
            except ChannelClosedError:
                return
            yield array
            del array

    def close(self) -> None:
        """Tell the sender that nothing more is wanted. Arrays received stay valid."""
        if self._closed:
            return
        self._closed = True
        with self._lock:
            if self._ring is not None:
                self._ring.say_closed()
                self._ring.close()
                self._ring = None

    @staticmethod
    def _wait(ring: Ring, tail: int, end: float | None) -> None:
        while ring.words[HEAD] == tail:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise WaitTimeoutError("nothing was sent in time")
            ring.wait(HEAD, tail, left)
            if ring.words[HEAD] == tail and ring.peer_closed():
                raise ChannelClosedError("the sender has closed the channel and everything was taken")
            if ring.words[HEAD] == tail and ring.peer_dead():
                raise PeerDiedError(f"the sender's process {ring.words[SENDER_PID]} has ended")


class Channel:
    """A bounded channel between two processes: give `sender` to one and `receiver` to the other.

    Args:
        capacity: How many arrays may be under way.
        pool: Where the sender puts arrays, if the sender is this process; otherwise the sender's own pool is used.
        spin: Seconds that an end looks for the other's move before it sleeps: saves a wake-up (about 4 us) per message.

    Raises:
        UnsupportedPlatformError: This is not Linux.
    """

    def __init__(self, capacity: int = 64, *, pool: Pool | None = None, spin: float = SPIN) -> None:
        if capacity < 1:
            raise ValueError(f"got capacity {capacity}, want at least 1")
        self._owner = RingOwner(capacity)
        self._finalizer = weakref.finalize(self, self._owner.close)
        self.sender = Sender(self._owner.token, spin, pool)
        self.receiver = Receiver(self._owner.token, spin)

    def close(self) -> None:
        """Close both ends where they are held by this process, and let nobody attach any more."""
        self.receiver.close()
        if self.sender._ring is not None:
            self.sender.close(timeout=0)
        self._finalizer()

    def __enter__(self) -> "Channel":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


_ENDPOINTS: "weakref.WeakSet[_Endpoint]" = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for endpoint in list(_ENDPOINTS):
        endpoint._after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
