"""What the ends of channels and topics share: waits that end by close, cancellation, exit and fork, and iteration."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

from xfer._channel.waiting import Sleepers, on_exit
from xfer._convert.interchange import Library
from xfer._times import deadline, left
from xfer.errors import ChannelClosedError, PeerDiedError, WaitTimeoutError


class Closing:
    """What a block closes as it ends."""

    def close(self) -> None:
        """Close it; WaitTimeoutError says that something was not taken in time."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            self.close()
        except WaitTimeoutError:
            if kind is None:  # else the block's own error is the one to see
                raise


class End(Closing):
    """One end, used by any threads of one process.

    `_lock` guards the state and is held for short; `_turn` is held by the one thread that sleeps.
    """

    def __init__(self) -> None:
        self._closed = self._exiting = self._armed = False
        self._renew()
        on_exit(self._stop)

    def fileno(self) -> int:
        """Return a descriptor that is readable when this end may be ready, for `select` and event loops."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Return whether this end would not wait."""
        raise NotImplementedError

    def close(self) -> None:
        """Close this end, and end every wait of it."""
        raise NotImplementedError

    def _ring_own(self) -> None:
        """End the wait of the thread that sleeps."""
        raise NotImplementedError

    def _renew(self) -> None:
        """Make the locks; in a forked child those of the parent may be held for ever."""
        self._lock, self._turn = threading.RLock(), threading.RLock()
        self._sleepers = Sleepers()

    def _check_open(self) -> None:
        if self._closed:
            raise ChannelClosedError("this end is closed")
        if self._exiting:
            raise ChannelClosedError("the interpreter is exiting")

    def _wake(self) -> None:
        """End every wait of this end, in threads and coroutines."""
        self._ring_own()
        self._sleepers.wake()

    def _stop(self) -> None:
        if not self._closed:
            self._exiting = True
            self._wake()

    async def _sleep(self, end: float | None, at_most: float | None = None) -> None:
        """Wait in a coroutine until this end may go on.

        Raises:
            WaitTimeoutError: The time is up.
        """
        seconds = left(end)
        if seconds == 0:
            raise WaitTimeoutError("the time for waiting is up")
        if at_most is not None:
            seconds = at_most if seconds is None else min(seconds, at_most)
        await self._sleepers.readable(self.fileno(), seconds)


class Incoming(End):
    """An end that receives."""

    def recv(self, *, timeout: float | None = None, as_: Library = "numpy", pin: bool = False) -> Any:
        """Return the next array or tree."""
        raise NotImplementedError

    async def arecv(self, *, timeout: float | None = None, as_: Library = "numpy", pin: bool = False) -> Any:
        """Return the next array or tree like `recv`, with its errors, and let the event loop run while it waits.

        Args:
            timeout: Seconds to wait; None waits for ever.
            as_: "numpy" or "torch", as in `recv`.
            pin: Copy tensors into pinned memory, as in `xfer.get`.

        Raises:
            WaitTimeoutError: Nothing came in time.
        """
        end = deadline(timeout)
        while True:
            try:
                return self.recv(timeout=0, as_=as_, pin=pin)
            except WaitTimeoutError:
                await self._sleep(end)

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

    async def __aiter__(self) -> AsyncIterator[Any]:
        while True:
            try:
                array = await self.arecv()
            except PeerDiedError:
                raise
            except ChannelClosedError:
                return
            yield array
            del array
