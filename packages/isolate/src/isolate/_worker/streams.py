"""Streams: the receiving end, with back-pressure, and the ways to iterate over one."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol

from .calls import deadline_after
from .convert import Convert
from .declared import result
from .errors import CallTimeoutError, OverloadedError, WireError, WouldDeadlockError
from .protocol import CREDIT, WINDOW


class StreamReply:
    """The receiving end of a stream. At most `WINDOW` items are in flight; the callee pauses until more are granted."""

    def __init__(self, credit: Callable[[int], None], wake: Callable[[], None] | None, unread: Unread) -> None:
        self._items: deque[tuple[Any, int]] = deque()
        self._unread = unread
        self._changed = threading.Condition()
        self._credit = credit
        self._wake = wake
        self._consumed = 0
        self._granted = WINDOW
        self._done = False
        self.failure: BaseException | None = None

    def item(self, value: Any, weight: int) -> None:
        """Queue one item.

        Raises:
            WireError: The other side had no credit for it.
            OverloadedError: Too many bytes are unread.
        """
        with self._changed:
            self._granted -= 1
            if self._granted < 0:
                raise WireError("a stream sent more items than it had credit for")
            self._unread.add(weight)
            self._items.append((value, weight))
            self._changed.notify()
        if self._wake is not None:
            self._wake()

    def set_result(self, _value: Any) -> None:
        """End the stream."""
        with self._changed:
            self._done = True
            self._changed.notify_all()
        if self._wake is not None:
            self._wake()

    def set_exception(self, failure: BaseException) -> None:
        """End the stream with a failure."""
        self.failure = failure
        self.set_result(None)

    def discard(self) -> None:
        """Drop what is unread."""
        with self._changed:
            while self._items:
                self._unread.add(-self._items.popleft()[1])

    def poll(self) -> tuple[bool, Any]:
        """`(True, item)`, or `(False, finished)`; raises the stream's failure after its last item."""
        with self._changed:
            if not self._items:
                if self._done and self.failure is not None:
                    raise self.failure
                return False, self._done
            value, weight = self._items.popleft()
            self._unread.add(-weight)
            self._consumed += 1
            grant = 0
            if self._consumed >= WINDOW // 2:
                grant, self._consumed = self._consumed, 0
                self._granted += grant
        if grant and not self._done:
            self._credit(grant)
        return True, value

    def wait(self, deadline: float | None) -> None:
        """Block until there is something to poll."""
        with self._changed:
            while not self._items and not self._done:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise CallTimeoutError("the stream's deadline passed before its next item")
                self._changed.wait(None if left is None else min(left, 4e6))  # the longest that every platform takes


class Unread:
    """The decoded bytes that all streams of one link hold.

    Args:
        limit: Most bytes; None for no limit.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._bytes = 0

    def add(self, count: int) -> None:
        """Count bytes; negative ones were read.

        Raises:
            OverloadedError: The limit is reached; nothing is counted then.
        """
        with self._lock:
            if count > 0 and self._limit is not None and self._bytes + count > self._limit:
                raise OverloadedError(f"{self._bytes} bytes of streams are unread; the limit is {self._limit}")
            self._bytes += count


class Streaming(Protocol):
    """What a stream needs of its link."""

    name: str
    loop: asyncio.AbstractEventLoop
    unread: Unread

    @property
    def on_loop_thread(self) -> bool:
        """Whether the caller runs on the thread that reads the link."""

    def next_number(self) -> int:
        """Return a fresh call number."""

    def begin(
        self,
        target: str | int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        deadline: float | None,
        reply: Any,
        number: int | None = None,
    ) -> int:
        """Send a call and return its number."""

    def begin_here(self, *call: Any) -> int | None:
        """Like `begin`, on an event loop's thread; None, and nothing is sent, if much would be copied there."""

    async def begin_elsewhere(self, *call: Any) -> int:
        """Like `begin`, in another thread, after `begin_here` has returned None."""

    def abandon(self, number: int) -> None:
        """Cancel a call unless it is answered already."""

    def tell(self, kind: int, number: int, value: Any) -> None:
        """Send a frame; no error if the other side is gone."""


def stream(
    link: Streaming,
    target: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    timeout: float | None,
    returns: Convert | None = None,
) -> Iterator[Any]:
    """Iterate over a stream from a thread; leaving the loop early closes the generator on the other side."""
    if link.on_loop_thread:
        raise WouldDeadlockError(
            f"a blocking stream of {link.name} on the event loop's own thread; use `async for` through `.aio`"
        )
    deadline = deadline_after(timeout)
    number = link.next_number()
    reply = StreamReply(lambda count: link.tell(CREDIT, number, count), None, link.unread)
    try:
        link.begin(target, args, kwargs, deadline, reply, number)
        while True:
            some, value = reply.poll()
            if some:
                yield result(value, returns)
            elif value:
                return
            else:
                reply.wait(deadline)
    finally:
        try:
            link.abandon(number)
        except BaseException:  # a signal handler's
            link.abandon(number)
            raise
        finally:
            reply.discard()


async def astream(
    link: Streaming,
    target: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    timeout: float | None,
    returns: Convert | None = None,
) -> AsyncIterator[Any]:
    """Iterate over a stream from a coroutine, on any event loop."""
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()

    def wake() -> None:
        if loop is link.loop:
            changed.set()
        else:
            with contextlib.suppress(RuntimeError):  # that loop is closed, so nothing waits
                loop.call_soon_threadsafe(changed.set)

    deadline = deadline_after(timeout)
    number = link.next_number()
    reply = StreamReply(lambda count: link.tell(CREDIT, number, count), wake, link.unread)
    try:
        if link.begin_here(target, args, kwargs, deadline, reply, number) is None:
            await link.begin_elsewhere(target, args, kwargs, deadline, reply, number)
        while True:
            changed.clear()
            some, value = reply.poll()
            if some:
                yield result(value, returns)
            elif value:
                return
            else:
                try:
                    await asyncio.wait_for(changed.wait(), None if deadline is None else deadline - time.monotonic())
                except TimeoutError:
                    raise CallTimeoutError("the stream's deadline passed before its next item") from None
    finally:
        link.abandon(number)
        reply.discard()
