"""The sending end of a channel."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from xfer._channel.endpoints import SPIN, Endpoint
from xfer._channel.layout import HEAD, RECEIVER_PID, SENT, SLAB_SPENT, TAIL, WAKE_AT_HALF, WAKE_AT_ONCE
from xfer._channel.ring import MESSAGE_ROOM, Ring
from xfer._channel.slab import LARGEST, Sending, sending_core, slab_shape
from xfer._convert.interchange import on_host, tensor_interface
from xfer._locks import claim
from xfer._shared.default import default_pool
from xfer._shared.handle import TOKEN_IN_SLOT, Handle, signature
from xfer._shared.pool import Pool
from xfer._times import deadline, left
from xfer.errors import (
    BudgetExceededError,
    ChannelClosedError,
    PeerDiedError,
    ProducerGoneError,
    WaitTimeoutError,
)

_LOOK_EACH = 0.05  # seconds after which a send looks whether the receiver's process lives
_HALF_FOR = 0.005  # seconds for which a sender waits for half of the ring before it asks for any room


class Outgoing:
    """What the sender's pool keeps for the receiver: arrays in flight and the slab."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.flying: deque[tuple[int, Pool, Handle]] = deque()  # number of the message, and what to release
        self.give_back_slab: Callable[[], None] | None = None

    def settle(self) -> None:
        """Release what the receiver has taken."""
        while self.flying and self.flying[0][0] < self.ring.words[TAIL]:
            _, pool, handle = self.flying.popleft()
            pool.release_later(handle)

    def drop(self) -> None:
        """Release everything in flight."""
        while self.flying:
            _, pool, handle = self.flying.popleft()
            pool.release_later(handle)

    def drop_slab(self) -> None:
        """Return the slab to the pool, which reuses it when no receiver leases it."""
        if self.give_back_slab is not None:
            self.give_back_slab()
            self.give_back_slab = None


class Abandoned:
    """What a sender that was dropped without `close` leaves: kept until it is taken or no receiver can take it."""

    _all: set[Abandoned] = set()  # noqa: RUF012 - one set for the process, which keeps them alive

    def __init__(self, outgoing: Outgoing, pool: Pool | None) -> None:
        self._outgoing = outgoing
        self._lock = threading.Lock()
        self._all.add(self)
        if pool is not None:
            pool.on_pressure(self.settle)

    def settle(self) -> None:
        """Release what was taken, and the rest if it cannot be taken any more."""
        taken: list[bool] = []
        try:
            if not claim(self._lock, taken) or self not in self._all:
                return
            outgoing, ring = self._outgoing, self._outgoing.ring
            outgoing.settle()
            gone = ring.peer_closed() or (not ring.peer_held() and not ring.reachable())
            if gone or ring.words[TAIL] == ring.words[HEAD]:
                self._all.discard(self)
                outgoing.drop()
                outgoing.drop_slab()
                ring.close()
        finally:
            if taken == [True]:
                self._lock.release()


def _abandon(outgoing: Outgoing, pool: weakref.ref[Pool] | None) -> None:
    outgoing.ring.say_closed()
    Abandoned(outgoing, pool() if pool is not None else None).settle()


class Sender(Endpoint):  # long because the argument texts of its public methods are in it
    """The end that sends; `bytes(sender)` or pickling takes it to another process before its first use.

    Any of its waits ends when another thread calls `close`. When the receiver's process dies, `send` raises
    PeerDiedError and releases what was in flight; once another receiver has attached, it goes on.

    Args:
        token: What `bytes(sender)` returned.
        spin: Seconds to look for room before sleeping.
        compiled: Use the compiled core where it could be built.
        pool: Where arrays are put; the process's own pool by default.

    Example:
        >>> with xfer.Channel(capacity=4) as channel:
        ...     with xfer.Sender.from_bytes(bytes(channel.sender)) as sender:  # as another process would
        ...         sender.send(np.zeros(3), timeout=5)
        ...         channel.receiver.recv(timeout=5).shape
        (3,)
    """

    _sending = True
    _pool: Pool | None = None

    def __init__(self, token: bytes, spin: float = SPIN, compiled: bool = True, pool: Pool | None = None) -> None:
        super().__init__(token, spin, compiled)
        self._pool = pool
        self._joined: Pool | None = None
        self._core: Sending | None = None
        self._outgoing: Outgoing | None = None
        self._tensor: type | None = None  # the class of tensors that the core takes
        self._look_at = 0.0

    def send(self, array: Any, *, timeout: float | None = None) -> None:
        """Send an array or a tree, waiting while the channel is full or the pool's budget is spent.

        Args:
            array: What `Pool.put` takes, or a `Handle` of this end's pool, which is not copied again: that is how to
                send one array to many.
            timeout: Seconds to wait for room; None waits for ever.

        Raises:
            WaitTimeoutError: No room in time.
            PeerDiedError: The receiver's process has ended.
            ChannelClosedError: The receiver, or this end, has closed.
        """
        kind = type(array)
        plain = array if kind is np.ndarray or kind is self._tensor else on_host(array)
        with self._lock:
            core, pool, now = self._core, self._joined, time.monotonic()
            nanoseconds = 0 if timeout == 0 else self._nanoseconds
            known = core is not None and pool is not None and not pool.closed and now < self._look_at
            if known and core is not None and core.send(plain, nanoseconds) == SENT:
                if self._outgoing is not None and self._outgoing.flying:
                    self._outgoing.settle()
                return
        self._send(array, None if timeout is None else now + timeout)

    async def asend(self, array: Any, *, timeout: float | None = None) -> None:
        """Send like `send`, and let the event loop run while it waits.

        Args:
            array: What `send` takes.
            timeout: Seconds to wait for room; None waits for ever.

        Raises:
            WaitTimeoutError: No room in time.
            PeerDiedError: The receiver's process has ended.
            ChannelClosedError: The receiver, or this end, has closed.
        """
        end = deadline(timeout)
        while True:
            try:
                self.send(array, timeout=0)
                return
            except WaitTimeoutError:
                with self._lock:
                    self._open().arm()
                    self._armed = True
                    self._quiet()
                await self._sleep(end, 0.02)  # room in the pool rings no bell

    def _send(self, array: Any, end: float | None) -> None:
        """Send by the slow way: whatever can wait does so without the lock."""
        handle: Handle | None = None
        pool: Pool | None = None
        tensor, array = array, on_host(array)
        half_until = time.monotonic() + _HALF_FOR
        try:
            while True:
                with self._lock:
                    ring = self._open()
                    tail = ring.words[TAIL]
                    self._check_receiver(ring)
                    pool = self._join(pool if handle is not None else None)
                    full = ring.words[HEAD] - tail >= ring.capacity
                    if not full and self._deliver(pool, ring, array, handle, tensor):
                        handle = None
                        return
                if full:
                    self._wait_for_room(ring, tail, end, half_until)
                else:
                    handle = self._put(pool, ring, array, end)
        finally:
            if handle is not None and pool is not None and not self._flies(handle):
                pool.release_later(handle)

    def _flies(self, handle: Handle) -> bool:
        """Return whether the receiver may have been told of a handle, as before a handler's error in `_deliver`."""
        outgoing = self._outgoing
        return outgoing is not None and any(flying is handle for _, _, flying in list(outgoing.flying))

    def _deliver(self, pool: Pool, ring: Ring, array: Any, handle: Handle | None, tensor: Any) -> bool:
        """Write a message, if the array needs not be put into the pool first."""
        outgoing = self._outgoing
        assert outgoing is not None
        if handle is None:
            small = type(array) is np.ndarray and 0 < array.nbytes <= LARGEST
            if small and self._send_in_slot(pool, ring, array, tensor):
                return True
            if not isinstance(array, Handle):
                return False
            pool.retain(array)
            handle = array
        outgoing.flying.append((ring.words[HEAD], pool, handle))
        ring.write(bytes(handle))
        outgoing.settle()  # last, while the receiver is at work already
        return True

    def _send_in_slot(self, pool: Pool, ring: Ring, array: np.ndarray[Any, Any], tensor: Any) -> bool:
        """Try to send in a slot an array whose kind the core does not know yet, or that needs a new slab."""
        core = self._core
        sig = signature(array.dtype, array.shape, False)
        # The names of a structured dtype can be changed in place, so the core could not tell it by its identity.
        if core is None or sig.flags & TOKEN_IN_SLOT or len(sig.meta) > MESSAGE_ROOM or array.dtype.names:
            return False
        if (core.stride < array.nbytes or ring.words[SLAB_SPENT] == core.epoch) and not self._new_slab(
            core, pool, ring, array.nbytes
        ):
            return False
        interface = tensor_interface() if tensor is not array else None
        if interface is not None and type(tensor) is interface[0]:
            core.use_tensors(*interface)
            core.learn_tensor(tensor, sig.meta)
            self._tensor = interface[0]
        if core.send(array, 0) == SENT:
            return True
        core.learn(array.dtype, array.shape, sig.meta)
        return core.send(array, 0) == SENT

    def _new_slab(self, core: Sending, pool: Pool, ring: Ring, nbytes: int) -> bool:
        if ring.words[TAIL] < core.last:
            return False  # the receiver still has to find the slab there is
        stride, slots = slab_shape(nbytes, ring.capacity, pool.budget)
        if not slots:
            return False
        self._drop_slab()
        try:
            lent = pool.lend(stride * slots)
        except BudgetExceededError:
            return False
        assert self._outgoing is not None
        self._outgoing.give_back_slab = lent.give_back
        epoch = (ring.slab()[2] + 1) & 0xFFFFFFFF or 1
        core.use_slab(lent.memory, lent.offset, stride, slots, epoch)
        ring.note_slab(stride, slots, epoch, bytes(lent.handle))
        return True

    def _join(self, pool: Pool | None) -> Pool:
        """Return the pool to put arrays into; the caller holds the lock."""
        if pool is not None:
            return pool
        pool = self._pool
        if pool is None or pool.closed:
            pool = self._pool = default_pool()
        if self._joined is not pool:
            self._drop_slab()
            pool.on_pressure(self.settle)
            self._joined = pool
            assert self._outgoing is not None
            self._finalizer.detach()
            self._finalizer = weakref.finalize(self, _abandon, self._outgoing, weakref.ref(pool))
            self._finalizer.atexit = False
        return pool

    def settle(self) -> None:
        """Release arrays that the receiver has taken; every `send` does so anyway."""
        taken: list[bool] = []
        try:
            if claim(self._lock, taken) and self._outgoing is not None and self._ring is not None:
                self._outgoing.settle()
        finally:
            if taken == [True]:
                self._lock.release()

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the receiver has taken everything.

        Args:
            timeout: Seconds to wait; None waits for ever.

        Raises:
            WaitTimeoutError: It did not in time.
            PeerDiedError: The receiver's process has ended.
        """
        end = deadline(timeout)
        while True:
            with self._lock:
                ring = self._ring
                if ring is None or ring.words[HEAD] == (tail := ring.words[TAIL]):
                    self.settle()
                    return
                self._check_receiver(ring)
            self._wait_for_room(ring, tail, end, 0.0)

    def close(self, timeout: float | None = None) -> None:
        """Wait until the receiver has taken everything, then tell it that no more comes.

        Args:
            timeout: Seconds to wait; None waits for ever. Another thread's `close(timeout=0)` ends the wait.

        Raises:
            WaitTimeoutError: The receiver did not take it in time; the channel is closed all the same.
        """
        if self._closed:
            return
        try:
            self.attach()
            self.flush(timeout)
        except (ChannelClosedError, ProducerGoneError):
            pass  # no receiver is left to take it
        finally:
            self._closed = True
            self._wake()
            with self._turn, self._lock:
                if self._outgoing is not None:
                    self._outgoing.drop()
                if self._ring is not None:
                    self._ring.say_closed()
                    self._let_go(self._ring)

    def _put(self, pool: Pool, ring: Ring, array: Any, end: float | None) -> Handle:
        """Put an array into the pool, waiting until the receiver has dropped enough views."""
        pause = 0.0005
        while True:
            tail = ring.words[TAIL]
            self.settle()  # first, to fill again memory that is mapped and in the cache
            try:
                return pool.put(array)
            except BudgetExceededError as error:
                if error.asked > pool.budget:
                    raise
                with self._lock:
                    if ring is not self._ring:
                        raise ChannelClosedError("this end is closed") from error
                    self._check_receiver(ring)
                    waiting = ring.words[HEAD] - tail
                if waiting:
                    self._wait_for_room(ring, tail, end, 0.0)
                    continue
                # Everything is taken, but views of it are alive over there. Their end wakes no process, so look often.
                if left(end) == 0:
                    held = pool.stats()
                    raise WaitTimeoutError(
                        f"no room within the timeout: the receiver holds views of {held.waiting_for_readers} arrays "
                        f"({held.used} of {held.budget} bytes); drop some there, or raise the pool's budget"
                    ) from error
                if self._exiting or self._closed:
                    raise ChannelClosedError("this end is closed") from error
                time.sleep(pause)
                pause = min(2 * pause, 0.005)

    def _wait_for_room(self, ring: Ring, tail: int, end: float | None, half_until: float) -> None:
        """Wait until the receiver has taken more than `tail` messages; may return too early."""
        if left(end) != 0 and ring.spin(TAIL, tail, self._spin):
            return
        how, until = WAKE_AT_ONCE, end
        if time.monotonic() < half_until:
            how, until = WAKE_AT_HALF, half_until if end is None else min(end, half_until)
        if not self._wait(ring, TAIL, tail, until, how) and left(end) == 0:
            waiting = ring.words[HEAD] - ring.words[TAIL] if ring is self._ring else 0
            raise WaitTimeoutError(f"the receiver took nothing in time; {waiting} arrays are waiting")
        self.settle()

    def _check_receiver(self, ring: Ring) -> None:
        """Raise if the receiver has closed or died; the caller holds the lock."""
        self._look_at = time.monotonic() + _LOOK_EACH
        dead, closed = ring.peer_dead(), ring.peer_closed()  # in this order: a receiver may close and then end
        if not closed and (not dead or not ring.empty_for_next()):
            return
        if closed:
            ring.empty_for_next()
        self._look_at = 0.0
        if self._outgoing is not None:
            self._outgoing.drop()
        self._drop_slab()
        if closed:
            raise ChannelClosedError("the receiver has closed the channel")
        raise PeerDiedError(
            f"the receiver's process {ring.words[RECEIVER_PID] or ''} has ended; arrays in flight are released"
        )

    def _drop_slab(self) -> None:
        if self._core is not None:
            self._core.drop_slab()
        if self._outgoing is not None:
            self._outgoing.drop_slab()

    def _make_core(self, ring: Ring) -> None:
        self._core = sending_core(ring, self._compiled)
        self._tensor = None
        self._outgoing = Outgoing(ring)
        self._joined = None
        self._finalizer = weakref.finalize(self, _abandon, self._outgoing, None)
        self._finalizer.atexit = False

    def _drop_core(self) -> None:
        self._drop_slab()
        if self._core is not None:
            self._core.detach()
            self._core = None
