"""What travels with a call, and the ways to wait for its answer; knows neither sockets nor encodings."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import inspect
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

from .errors import CallTimeout, WireError

WINDOW = 16


class Context(NamedTuple):
    """Deadline (on the monotonic clock, which a machine's processes share) and depth of the running call."""

    deadline: float | None
    depth: int


CURRENT: ContextVar[Context] = ContextVar("isolate_call", default=Context(None, 0))  # noqa: B039 - a tuple


class Export(NamedTuple):
    """One callable that the other side may call by name."""

    function: Callable[..., Any]
    kind: str
    convert: Callable[[list[Any], dict[str, Any]], tuple[list[Any], dict[str, Any]]] | None = None


def kind_of(function: Callable[..., Any]) -> str:
    """How a callable is run: `sync` on a thread, `async` on the loop, `stream` and `astream` item by item."""
    while hasattr(function, "func"):  # functools.partial
        function = function.func
    for candidate in (function, getattr(function, "__call__", None)):  # noqa: B004 - instances of classes with an async __call__
        if inspect.iscoroutinefunction(candidate):
            return "async"
        if inspect.isasyncgenfunction(candidate):
            return "astream"
        if inspect.isgeneratorfunction(candidate):
            return "stream"
    return "sync"


def deadline_after(timeout: float | None) -> float | None:
    """The earlier of the running call's deadline and `timeout` seconds from now."""
    inherited = CURRENT.get().deadline
    if timeout is None:
        return inherited
    own = time.monotonic() + timeout
    return own if inherited is None else min(own, inherited)


def settle(future: asyncio.Future[Any], value: Any, failure: BaseException | None) -> None:
    """Resolve a future unless its waiter has given up."""
    if future.done():
        return
    if failure is None:
        future.set_result(value)
    else:
        future.set_exception(failure)


class ThreadReply:
    """An answer that a thread waits for."""

    __slots__ = ("_lock", "failure", "value")

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._lock.acquire()
        self.value: Any = None
        self.failure: BaseException | None = None

    def set_result(self, value: Any) -> None:
        """Take the answer."""
        self.value = value
        self._lock.release()

    def set_exception(self, failure: BaseException) -> None:
        """Take the failure."""
        self.failure = failure
        self._lock.release()

    def wait(self, deadline: float | None) -> bool:
        """Whether the answer came before the deadline."""
        if deadline is None:
            return self._lock.acquire()
        return self._lock.acquire(timeout=max(0.0, min(deadline - time.monotonic(), 4e6)))

    def take(self) -> Any:
        """The answer, or raise the failure."""
        if self.failure is not None:
            raise self.failure
        return self.value


class ForeignReply:
    """An answer awaited on another event loop than the one that reads the socket."""

    __slots__ = ("_future", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any]) -> None:
        self._loop = loop
        self._future = future

    def set_result(self, value: Any) -> None:
        """Take the answer."""
        self._post(lambda: settle(self._future, value, None))

    def set_exception(self, failure: BaseException) -> None:
        """Take the failure."""
        self._post(lambda: settle(self._future, None, failure))

    def _post(self, action: Callable[[], Any]) -> None:
        with contextlib.suppress(RuntimeError):  # that loop is closed: nobody waits
            self._loop.call_soon_threadsafe(action)


class StreamReply:
    """The receiving end of a stream: at most `WINDOW` items are under way; the rest waits in the callee."""

    def __init__(self, credit: Callable[[int], None], wake: Callable[[], None] | None) -> None:
        self._items: deque[Any] = deque()
        self._changed = threading.Condition()
        self._credit = credit
        self._wake = wake
        self._consumed = 0
        self._granted = WINDOW
        self._done = False
        self.failure: BaseException | None = None

    def item(self, value: Any) -> None:
        """Take one item from the socket."""
        with self._changed:
            self._granted -= 1
            if self._granted < 0:
                raise WireError("a stream sent more items than it had credit for")
            self._items.append(value)
            self._changed.notify()
        if self._wake is not None:
            self._wake()

    def set_result(self, value: Any) -> None:
        """Take the answer."""
        with self._changed:
            self._done = True
            self._changed.notify_all()
        if self._wake is not None:
            self._wake()

    def set_exception(self, failure: BaseException) -> None:
        """Take the failure."""
        self.failure = failure
        self.set_result(None)

    def poll(self) -> tuple[bool, Any]:
        """`(True, item)`, or `(False, finished)`; raises the stream's failure after its last item."""
        with self._changed:
            if not self._items:
                if self._done and self.failure is not None:
                    raise self.failure
                return False, self._done
            value = self._items.popleft()
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
                    raise CallTimeout("the stream's deadline passed before its next item")
                self._changed.wait(left)
