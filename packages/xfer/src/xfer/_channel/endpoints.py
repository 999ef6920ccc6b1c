"""The two ends of a bounded stream of arrays from one process to another, with back-pressure.

A small array travels in a slot of the channel's own slab (see `slab.py`). For any other a handle travels, and the
sender keeps the array until the receiver has leased it. Either way an array is never lost in between, and its memory
comes back when the last view of it is gone, or when the receiver's process ends.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from xfer._channel.layout import HEAD, RECEIVER_PID, SENDER_PID, SENT, SLAB_SPENT, TAIL
from xfer._channel.ring import HANDLE, MESSAGE_ROOM, Message, Ring
from xfer._channel.slab import LARGEST, Receiving, Sending, receiving_core, sending_core, slab_shape
from xfer._forks import on_fork
from xfer._shared import dtypes
from xfer._shared.default import default_pool
from xfer._shared.handle import CUDA, TOKEN_IN_SLOT, Handle, read_meta, signature
from xfer._shared.pool import Pool
from xfer._shared.reader import READER
from xfer.errors import (
    BudgetExceededError,
    ChannelClosedError,
    EndpointTakenError,
    HandleError,
    PeerDiedError,
    PoolClosedError,
    ProducerGoneError,
    StaleHandleError,
    WaitTimeoutError,
)

SPIN = 200e-6


class _Endpoint:
    """What both ends share: they are tokens until first used, and then belong to the process that used them."""

    _sending: bool

    def __init__(self, token: bytes, spin: float = SPIN, compiled: bool = True) -> None:
        self._token = token
        self._spin = spin if (os.cpu_count() or 1) > 1 else 0.0
        self._nanoseconds = int(self._spin * 1e9)
        self._compiled = compiled
        self._ring: Ring | None = None
        self._lock = threading.Lock()
        self._closed = False
        on_fork(before=self._before_fork, child=self._after_fork_in_child)

    def __bytes__(self) -> bytes:
        return self._token

    def __reduce__(self) -> tuple[Any, tuple[bytes, float, bool]]:
        return type(self), (self._token, self._spin, self._compiled)

    @classmethod
    def from_bytes(cls, token: bytes) -> Any:
        """Return this end from its bytes, as made by `bytes(endpoint)`."""
        return cls(bytes(token))

    @property
    def attached(self) -> bool:
        """Whether this process holds this end."""
        return self._ring is not None

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
                ring = Ring(self._token, self._sending)
            except BlockingIOError as error:
                name = "sending" if self._sending else "receiving"
                raise EndpointTakenError(f"the {name} end is held already: make one channel for each pair") from error
            self._make_core(ring)
            self._ring = ring

    def _before_fork(self) -> None:
        pass

    def _after_fork_in_child(self) -> None:
        self._lock = threading.Lock()
        if self._ring is not None:
            self._let_go(self._ring)
            self._closed = True

    def _let_go(self, ring: Ring) -> None:
        self._drop_core()
        ring.close()
        self._ring = None

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        raise NotImplementedError

    def _make_core(self, ring: Ring) -> None:
        raise NotImplementedError

    def _drop_core(self) -> None:
        raise NotImplementedError


class Sender(_Endpoint):
    """The end that sends; `bytes(sender)` or pickling takes it to another process before its first use.

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
        self._flying: deque[tuple[int, Pool, Handle]] = deque()  # number of the message, and what to release
        self._joined: Pool | None = None
        self._core: Sending | None = None
        self._end_of_slab: Any = None
        self._lost = False

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
        with self._lock:
            core, pool = self._core, self._joined
            if core is None or pool is None or pool.closed or core.send(array, self._nanoseconds) != SENT:
                self._send(array, None if timeout is None else time.monotonic() + timeout)
            elif self._flying:
                self._settle()

    def _send(self, array: Any, end: float | None) -> None:
        if self._ring is None:
            self.attach()
        ring = self._ring
        assert ring is not None
        if self._lost:
            self._gone(ring)
        while ring.words[HEAD] - (tail := ring.words[TAIL]) >= ring.capacity:
            self._wait(ring, tail, end)
        pool = self._pool
        if pool is None or pool.closed:
            pool = self._pool = default_pool()
        if self._joined is not pool:
            self._drop_slab()
            pool.on_pressure(self.settle)
            self._joined = pool
        if ring.peer_closed():
            self._gone(ring)
        if type(array) is np.ndarray and 0 < array.nbytes <= LARGEST and self._send_in_slot(pool, ring, array):
            return
        if isinstance(array, Handle):
            pool.retain(array)
            handle = array
        else:
            handle = self._put(pool, ring, array, end)
        self._flying.append((ring.words[HEAD], pool, handle))
        ring.write(bytes(handle))
        self._settle()  # last, while the receiver is at work already

    def _send_in_slot(self, pool: Pool, ring: Ring, array: np.ndarray[Any, Any]) -> bool:
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
        core.learn(array.dtype, array.shape, sig.meta)
        return core.send(array, 0) == SENT

    def _new_slab(self, core: Sending, pool: Pool, ring: Ring, nbytes: int) -> bool:
        if ring.words[TAIL] < core.last:
            return False  # somebody still has to find the slab there is
        stride, slots = slab_shape(nbytes, ring.capacity, pool.budget)
        if not slots:
            return False
        self._drop_slab()
        try:
            lent = pool.lend(stride * slots)
        except BudgetExceededError:
            return False
        self._end_of_slab = weakref.finalize(self, lent.give_back)
        epoch = (ring.slab()[2] + 1) & 0xFFFFFFFF or 1
        core.use_slab(lent.memory, lent.offset, stride, slots, epoch)
        ring.note_slab(stride, slots, epoch, bytes(lent.handle))
        return True

    def settle(self) -> None:
        """Release arrays that the receiver has taken; every `send` does so anyway."""
        if self._flying and self._lock.acquire(blocking=False):
            try:
                self._settle()
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
            ring = self._ring
            if ring is not None and not self._lost:
                while ring.words[HEAD] != (tail := ring.words[TAIL]):
                    self._wait(ring, tail, end)
                self._settle()

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
                self._drop_flying()
                if self._ring is not None:
                    self._ring.say_closed()
                    self._let_go(self._ring)

    def _put(self, pool: Pool, ring: Ring, array: Any, end: float | None) -> Handle:
        while True:
            tail = ring.words[TAIL]
            self._settle()  # first, to fill again memory that is mapped and in the cache
            try:
                return pool.put(array)
            except BudgetExceededError as error:
                if error.asked > pool.budget:
                    raise
                if ring.words[HEAD] != tail:
                    self._wait(ring, tail, end)
                    continue
                # Everything is taken, but views of it are still alive over there: nothing will ring, so look often.
                if end is not None and time.monotonic() >= end:
                    raise WaitTimeoutError("the receiver still looks at all that the budget holds") from error
                if ring.peer_closed() or ring.peer_dead():
                    self._gone(ring)
                time.sleep(0.001)

    def _wait(self, ring: Ring, tail: int, end: float | None) -> None:
        """Wait until the receiver has taken more than `tail` messages; may return too early."""
        if not ring.spin(TAIL, tail, self._spin):
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                waiting = ring.words[HEAD] - ring.words[TAIL]
                raise WaitTimeoutError(f"the receiver took nothing in time; {waiting} arrays are waiting")
            ring.wait(TAIL, tail, left)
            if ring.words[TAIL] == tail and (ring.peer_closed() or ring.peer_dead()):
                self._gone(ring)
        self._settle()

    def _gone(self, ring: Ring) -> None:
        self._lost = True
        self._drop_flying()
        self._drop_slab()
        if ring.peer_closed():
            raise ChannelClosedError("the receiver has closed the channel")
        raise PeerDiedError(
            f"the receiver's process {ring.words[RECEIVER_PID]} has ended; arrays in flight are released"
        )

    def _settle(self) -> None:
        ring = self._ring
        while ring is not None and self._flying and self._flying[0][0] < ring.words[TAIL]:
            self._release_oldest()

    def _drop_flying(self) -> None:
        while self._flying:
            self._release_oldest()

    def _release_oldest(self) -> None:
        _, pool, handle = self._flying.popleft()
        with contextlib.suppress(PoolClosedError):
            pool.release(handle)

    def _drop_slab(self) -> None:
        if self._core is not None and self._end_of_slab is not None:
            self._core.drop_slab()
            self._end_of_slab()
            self._end_of_slab = None

    def _make_core(self, ring: Ring) -> None:
        self._core = sending_core(ring, self._compiled)

    def _drop_core(self) -> None:
        self._drop_slab()
        if self._core is not None:
            self._core.detach()
            self._core = None


class Receiver(_Endpoint):
    """The end that receives; iterate over it, or call `recv`.

    Example:
        >>> with xfer.Channel(capacity=4) as channel:
        ...     with xfer.Receiver.from_bytes(bytes(channel.receiver)) as receiver:  # as another process would
        ...         for number in range(3):
        ...             channel.sender.send(np.full(2, number), timeout=5)
        ...         [int(receiver.recv(timeout=5)[0]) for _ in range(3)]
        [0, 1, 2]
    """

    _sending = False
    _core: Receiving | None = None

    def recv(self, *, timeout: float | None = None) -> Any:
        """Return the next array: no copy, read-only, its slot taken until the last view of it is gone.

        Args:
            timeout: Seconds to wait; None waits for ever.

        Raises:
            WaitTimeoutError: Nothing came in time.
            ChannelClosedError: The sender has closed and everything was taken.
            PeerDiedError: The sender's process has ended.
        """
        with self._lock:
            if self._core is not None:
                array = self._core.recv(self._nanoseconds)
                if array is not None:
                    return array
            return self._recv(None if timeout is None else time.monotonic() + timeout)

    def _recv(self, end: float | None) -> Any:
        if self._ring is None:
            self.attach()
        ring, core = self._ring, self._core
        assert ring is not None
        assert core is not None
        tail = ring.words[TAIL]
        if ring.words[HEAD] == tail and not ring.spin(HEAD, tail, self._spin):
            self._wait(ring, tail, end)
        message = ring.peek()
        try:
            if message.slot != HANDLE:
                return self._from_slot(ring, core, message)
            array, flags = READER.array(message.meta)
        except ProducerGoneError as error:
            raise PeerDiedError(f"the sender's process has ended and its memory with it: {error}") from error
        except StaleHandleError as error:
            if ring.peer_closed():
                raise ChannelClosedError("the sender gave up waiting and took its arrays back") from error
            raise
        finally:
            if ring.words[TAIL] == tail:
                ring.took(tail)
        if flags & CUDA:
            from xfer._shared.cuda_ipc import open_record

            return open_record(array, message.meta)
        return array

    @staticmethod
    def _from_slot(ring: Ring, core: Receiving, message: Message) -> Any:
        """Take an array of a slab or of a kind that the core does not know yet."""
        if message.epoch != core.epoch:
            stride, slots, epoch, handle = ring.slab()
            if epoch != message.epoch:
                raise StaleHandleError("the sender of this array has ended, and another one took its place")
            core.use_slab(READER.array(handle)[0], stride, slots, epoch)
        shape, token = read_meta(message.meta, message.ndim)
        core.learn(message.meta, message.ndim, shape, dtypes.decode(token))
        array = core.recv(0)
        if array is None:
            raise HandleError("the channel's memory is damaged: a message does not fit its slab")
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
                self._let_go(self._ring)

    def _before_fork(self) -> None:
        # The child will look at the arrays in use as well, so their slots are not ours alone to give back.
        if self._core is not None and self._ring is not None and self._core.pin():
            self._ring.words[SLAB_SPENT] = self._core.epoch

    def _make_core(self, ring: Ring) -> None:
        self._core = receiving_core(ring, self._compiled)

    def _drop_core(self) -> None:
        if self._core is not None:
            self._core.detach()
            self._core = None

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
