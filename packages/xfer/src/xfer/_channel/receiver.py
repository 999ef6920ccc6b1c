"""The receiving end of a channel."""

from __future__ import annotations

import time
import weakref
from typing import Any

from xfer._channel.end import Incoming
from xfer._channel.endpoints import Endpoint
from xfer._channel.layout import HEAD, SENDER_CLOSED, SENDER_PID, SLAB_SPENT, TAIL
from xfer._channel.ring import HANDLE, Message, Ring
from xfer._channel.slab import Receiving, receiving_core
from xfer._convert.interchange import (
    Library,
    check_library,
    dlpack_kind,
    pinned,
    private_tensor,
    tensor_interface,
    to_torch,
)
from xfer._shared import dtypes
from xfer._shared.handle import read_meta
from xfer._shared.reader import READER, present
from xfer._times import deadline
from xfer.errors import (
    ChannelClosedError,
    HandleError,
    PeerDiedError,
    ProducerGoneError,
    StaleHandleError,
    WaitTimeoutError,
    XferError,
)

_NOTHING = object()
_LOOK_EACH = 0.05  # seconds after which `recv(timeout=0)` looks whether the sender's process lives


class Receiver(Incoming, Endpoint):
    """The end that receives; iterate over it, or call `recv`. `async for` and `arecv` wait in an event loop.

    Any of its waits ends when another thread calls `close`. A receiver that is dropped is closed. When the sender's
    process dies, each call raises PeerDiedError until another sender attaches; then it goes on.

    Args:
        token: What `bytes(receiver)` returned.
        spin: Seconds to look for an array before sleeping.
        compiled: Use the compiled core where it could be built.

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
    _torch_known = False
    _look_at = 0.0  # when `recv(timeout=0)` looks at the sender's process again

    def recv(self, *, timeout: float | None = None, as_: Library = "numpy", pin: bool = False) -> Any:
        """Return the next array or tree: no copy, read-only, its slot taken until the last view of it is gone.

        Args:
            timeout: Seconds to wait; None waits for ever.
            as_: "numpy", or "torch" for writable tensors over private memory, as in `xfer.get`.
            pin: Copy tensors into pinned memory, as in `xfer.get`.

        Raises:
            WaitTimeoutError: Nothing came in time.
            ChannelClosedError: The sender has closed and everything was taken, or this end was closed.
            PeerDiedError: The sender's process has ended.
        """
        if as_ != "numpy" or pin:
            check_library(as_, pin)
        end, nanoseconds = (0.0, 0) if timeout == 0 else (deadline(timeout), self._nanoseconds)
        while True:
            with self._lock:
                core = self._core
                if core is not None:
                    try:
                        plain = as_ == "numpy" or pin
                        array = core.recv(nanoseconds) if plain else self._recv_tensor(core, nanoseconds)
                    except dtypes.MISFITS as error:
                        raise self._damaged(error) from error
                    if array is not None:
                        self._quiet()
                        return to_torch(pinned(array))[0] if pin else array
                    if end == 0.0 and self._empty():
                        raise WaitTimeoutError("nothing was sent in time")
                array = self._take(as_, pin)
                if array is not _NOTHING:
                    return array
                ring = self._ring
                assert ring is not None
                tail = ring.words[TAIL]
            if not self._wait(ring, HEAD, tail, end):
                raise WaitTimeoutError("nothing was sent in time")

    def _take(self, as_: Library, pin: bool) -> Any:
        """Take a message by the slow way, or return _NOTHING where none waits."""
        ring, core = self._open(), self._core
        assert core is not None
        tail = ring.words[TAIL]
        if ring.words[HEAD] == tail:
            dead, closed = ring.peer_dead(), ring.peer_closed()  # in this order: a sender may close and then end
            if ring.words[HEAD] == tail and closed:
                raise ChannelClosedError("the sender has closed the channel and everything was taken")
            if ring.words[HEAD] == tail and dead:
                pid = ring.words[SENDER_PID]
                raise PeerDiedError(f"the sender's process {pid or ''} has ended without closing the channel")
            self._quiet()
            if ring.words[HEAD] == tail:
                self._look_at = time.monotonic() + _LOOK_EACH
                return _NOTHING
        message = ring.peek()
        try:
            if message.slot != HANDLE:
                array = _from_slot(ring, core, message)
                if pin:
                    return to_torch(pinned(array))[0]
                return array if as_ == "numpy" else private_tensor(array)
            array, fields = READER.array(message.meta, private=as_ == "torch" and not pin)
        except ProducerGoneError as error:
            raise PeerDiedError(f"the sender's process has ended and its memory with it: {error}") from error
        except StaleHandleError as error:
            if ring.peer_closed():
                raise ChannelClosedError("the sender gave up waiting and took its arrays back") from error
            raise
        finally:
            if ring.words[TAIL] == tail:
                ring.took(tail)
            self._quiet()
        return present(array, fields, message.meta, as_, pin)

    def _empty(self) -> bool:
        """Return whether nothing waits, where the sender lived a moment ago and need not be looked at again."""
        ring = self._ring
        if ring is None or self._armed or self._exiting:
            return False
        words = ring.words
        empty: bool = words[HEAD] == words[TAIL]  # before the next: a sender closes after it has sent
        return empty and not words[SENDER_CLOSED] and time.monotonic() < self._look_at

    def ready(self) -> bool:
        """Return whether this end would not wait: an array is there, or the sender has closed or died."""
        self._look_at = 0.0  # so that `recv` finds what is found here
        return super().ready()

    def _recv_tensor(self, core: Receiving, nanoseconds: int) -> Any:
        """Return the next array as a tensor with memory of its own, or None as the core does."""
        if not self._torch_known:
            import torch  # noqa: F401 - the caller wants tensors

            interface = tensor_interface()
            if interface is not None:
                core.use_tensors(interface[1])
            self._torch_known = True
        tensor = core.recv_tensor(nanoseconds)
        if tensor is not None:
            return tensor
        array = core.recv(0)  # of a kind that the core makes no tensors of
        return None if array is None else private_tensor(array)

    def _damaged(self, error: BaseException) -> HandleError:
        """Pass over a message that does not make sense; return the error to raise."""
        ring = self._ring
        if ring is not None:
            ring.took(ring.words[TAIL])
        return HandleError(f"a message of the channel is damaged: {error}")

    def close(self) -> None:
        """Tell the sender that nothing more is wanted. Arrays received stay valid."""
        if self._closed:
            return
        self._closed = True
        self._wake()
        with self._turn, self._lock:
            if self._ring is not None:
                self._ring.say_closed()
                self._let_go(self._ring)

    def _before_fork(self) -> None:
        # The child has the arrays in use as well, so their slots are not this process's alone to return.
        if self._core is not None and self._ring is not None and self._core.pin():
            self._ring.words[SLAB_SPENT] = self._core.epoch

    def _make_core(self, ring: Ring) -> None:
        core = self._core = receiving_core(ring, self._compiled)
        self._torch_known = False
        self._finalizer = weakref.finalize(self, _end, ring, core)
        self._finalizer.atexit = False
        if ring.successor:
            ring.words[SLAB_SPENT] = ring.slab()[2]  # slots that the holder before had never come back

    def _drop_core(self) -> None:
        if self._core is not None:
            self._core.detach()
            self._core = None


def _end(ring: Ring, core: Receiving) -> None:
    """Close a receiver that was dropped."""
    ring.say_closed()
    core.detach()
    ring.close()


def _from_slot(ring: Ring, core: Receiving, message: Message) -> Any:
    """Take an array of a slab or of a kind that the core does not know yet."""
    if message.epoch != core.epoch:
        stride, slots, epoch, handle = ring.slab()
        if epoch != message.epoch:
            raise StaleHandleError("the sender of this array has ended, and another one took its place")
        try:
            core.use_slab(READER.array(handle)[0], stride, slots, epoch)
        except dtypes.MISFITS as error:
            if isinstance(error, XferError):
                raise
            raise HandleError(f"the channel's memory is damaged: {error}") from error
    try:
        shape, token = read_meta(message.meta, message.ndim)
        dtype = dtypes.decode(token)
        core.learn(message.meta, message.ndim, shape, dtype, dlpack_kind(dtype))
        array = core.recv(0)
    except dtypes.MISFITS as error:
        if isinstance(error, HandleError):
            raise
        raise HandleError(f"a message of the channel is damaged: {error}") from error
    if array is None:
        raise HandleError("the channel's memory is damaged: a message does not fit its slab")
    return array
