"""What both ends of a channel share: attaching, waiting that can be ended from any thread, and closing."""

from __future__ import annotations

import contextlib
import operator
import os
import sys
import weakref
from typing import Any, Self

from xfer._arguments import token_bytes
from xfer._channel.end import End
from xfer._channel.layout import WAKE_AT_ONCE
from xfer._channel.ring import Ring, announce
from xfer._forks import on_fork
from xfer._locks import claim
from xfer._times import left
from xfer.errors import EndpointTakenError, XferError

SPIN = 200e-6
_LONGEST_SPIN = 60


def _holds(value: Any, end: Any, depth: int) -> bool:
    """Return whether a container, or one in it, holds an end."""
    if value is end:
        return True
    if not depth or not isinstance(value, dict | list | tuple):
        return False
    return any(_holds(item, end, depth - 1) for item in (value.values() if isinstance(value, dict) else value))


class Endpoint(End):
    """One end of a channel: a token until its first use, then held by the process that used it."""

    _sending: bool

    def __init__(self, token: bytes, spin: float = SPIN, compiled: bool = True) -> None:
        super().__init__()
        self._token = token
        if not 0 <= spin <= _LONGEST_SPIN:
            raise ValueError(f"got spin {spin!r}, want 0 to {_LONGEST_SPIN} seconds")
        self._spin = spin if (os.cpu_count() or 1) > 1 else 0.0
        self._nanoseconds = int(self._spin * 1e9)
        self._compiled = compiled
        self._ring: Ring | None = None
        self._finalizer: Any = None
        self._other: weakref.ref[Endpoint] | None = None
        self._expected: Any = None
        on_fork(before=self._before_fork, child=self._after_fork_in_child)

    def __bytes__(self) -> bytes:
        return self._token

    def __reduce__(self) -> tuple[Any, tuple[bytes, float, bool]]:
        # This end is on its way to a process that multiprocessing is about to start.
        spawning = getattr(sys.modules.get("multiprocessing.context"), "get_spawning_popen", None)
        popen = spawning() if spawning is not None else None
        other = self._other() if self._other is not None else None
        if popen is not None and other is not None:
            other.expect(popen)
        return type(self), (self._token, self._spin, self._compiled)

    @classmethod
    def from_bytes(cls, token: bytes) -> Self:
        """Return this end from its bytes.

        Args:
            token: What `bytes(endpoint)` returned.
        """
        return cls(token_bytes(token, f"a {cls.__name__}"))

    def pair(self, other: Endpoint) -> None:
        """Remember the other end of the same channel, if this process made both.

        Args:
            other: The other end.
        """
        self._other = weakref.ref(other)

    def expect(self, process: Any) -> None:
        """Name the process that is to attach the other end; its death before that counts as the end's.

        An end that is an argument of a `multiprocessing.Process` does this by itself.

        Args:
            process: A process number, or an object with a `pid`, such as `subprocess.Popen`.
        """
        self._expected = process

    @property
    def attached(self) -> bool:
        """Whether this process holds this end."""
        return self._ring is not None

    @property
    def closed(self) -> bool:
        """Whether this end was closed here."""
        return self._closed

    def attach(self) -> None:
        """Take this end for this process; the first use does so as well.

        Raises:
            ChannelClosedError: This end is closed.
            EndpointTakenError: Another process holds it.
            ProducerGoneError: The channel is gone.
        """
        with self._lock:
            self._open()

    def ready(self) -> bool:
        """Return whether this end would not wait: it can go on, or the other end has closed or died."""
        with self._lock:
            ring = self._open()
            if ring.can_go_on() or ring.peer_closed() or ring.peer_dead():
                return True
            self._quiet()
            return False

    def fileno(self) -> int:
        """Return a descriptor that is readable when this end can go on, for `select` and event loops.

        A receiver's is readable while an array waits, and after the other end has closed or died.
        """
        with self._lock:
            ring = self._open()
            self._armed = True
            return ring.arm()

    def _open(self) -> Ring:
        """Return the ring; the caller holds the lock."""
        self._check_open()
        if self._ring is None:
            try:
                ring = Ring(self._token, self._sending)
            except BlockingIOError as error:
                name = "sending" if self._sending else "receiving"
                raise EndpointTakenError(f"the {name} end is held already: make one channel for each pair") from error
            self._make_core(ring)
            self._ring = ring
        return self._ring

    def _wait(self, ring: Ring, word: int, value: int, end: float | None, how: int = WAKE_AT_ONCE) -> bool:
        """Sleep without the lock; return False when the time is up. It may return too early."""
        seconds = left(end)
        if seconds == 0:
            return False
        taken: list[bool] = []
        try:
            if not claim(self._turn, taken, seconds):
                return left(end) != 0
            if ring is self._ring and not self._closed and not self._exiting:
                pid = getattr(self._expected, "pid", self._expected)
                if isinstance(pid, int):
                    ring.named = pid
                ring.wait(word, value, left(end), how)
        except (OSError, ValueError):
            if not self._closed:  # a signal handler of this thread has closed this end
                raise
        finally:
            if taken == [True]:
                self._turn.release()
        return True

    def _quiet(self) -> None:
        """Take back the wake-ups of an armed descriptor that are answered; the caller holds the lock."""
        ring = self._ring
        if self._armed and ring is not None:
            ring.quiet()
            if self._closed or self._exiting:  # another thread sleeps until it hears of that
                ring.ring_own()

    def _ring_own(self) -> None:
        ring = self._ring
        if ring is not None:
            ring.ring_own()

    def _before_fork(self) -> None:
        pass

    def _after_fork_in_child(self) -> None:
        self._renew()
        if self._ring is not None:
            self._let_go(self._ring)
            self._closed = True
        util = sys.modules.get("multiprocessing.util")
        if util is not None and not self._closed:
            util.register_after_fork(self, operator.methodcaller("_in_worker"))

    def _in_worker(self) -> None:
        """In a forked `multiprocessing.Process` that was given this end: have the other end notice its death."""
        process = sys.modules["multiprocessing.process"].current_process()
        if not self._closed and _holds(vars(process), self, 4):
            with contextlib.suppress(XferError):
                announce(self._token, self._sending)

    def _let_go(self, ring: Ring) -> None:
        if self._finalizer is not None:
            self._finalizer.detach()
        self._drop_core()
        ring.close()
        self._ring = None

    def _make_core(self, ring: Ring) -> None:
        raise NotImplementedError

    def _drop_core(self) -> None:
        raise NotImplementedError
