"""What travels with a call, and the ways to wait for its answer."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import functools
import inspect
import math
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

from .errors import WireError


class Context(NamedTuple):
    """Deadline (on the monotonic clock, which a machine's processes share) and depth of the running call."""

    deadline: float | None
    depth: int


CURRENT: ContextVar[Context] = ContextVar("isolate_call", default=Context(None, 0))  # noqa: B039 - a tuple


def checked_call(parts: Any) -> tuple[Any, list[Any], dict[str, Any], Context]:
    """Return target, arguments, keyword arguments and context of a CALL's payload."""
    if type(parts) is not list or len(parts) != 5:
        raise WireError("a call is not a list of five parts")
    target, args, kwargs, deadline, depth = parts
    if type(args) is not list or type(kwargs) is not dict or type(depth) is not int or depth < 1:
        raise WireError("a call's arguments or depth are malformed")
    if deadline is not None and type(deadline) is not float:
        raise WireError("a call's deadline is not a number")
    return target, args, kwargs, Context(deadline, depth)


class Export(NamedTuple):
    """One callable that the other side may call by name."""

    function: Callable[..., Any]
    kind: str
    convert: Callable[[list[Any], dict[str, Any]], tuple[list[Any], dict[str, Any]]] | None = None


def kind_of(function: Callable[..., Any]) -> str:
    """Return how a callable runs: `sync` on a thread, `async` on the loop, `stream` and `astream` item by item."""
    while isinstance(function, functools.partial):
        function = function.func
    for candidate in (function, getattr(function, "__call__", None)):  # noqa: B004 - instances of classes with an async __call__
        if inspect.iscoroutinefunction(candidate):
            return "async"
        if inspect.isasyncgenfunction(candidate):
            return "astream"
        if inspect.isgeneratorfunction(candidate):
            return "stream"
    return "sync"


def seconds_of(timeout: float, what: str = "timeout") -> float:
    """Return a time in seconds.

    Raises:
        ValueError: It is not a number: no time would ever be later.
        TypeError: It is of another type.
    """
    try:
        seconds = math.nan if isinstance(timeout, str) else float(timeout)
    except OverflowError:
        return math.inf if timeout > 0 else -math.inf
    if math.isnan(seconds):
        kind = TypeError if isinstance(timeout, str) else ValueError
        raise kind(f"{what} is {timeout!r:.40}; wanted a number of seconds")
    return seconds


def deadline_after(timeout: float | None) -> float | None:
    """Return the earlier of the running call's deadline and `timeout` seconds from now."""
    inherited = CURRENT.get().deadline
    if timeout is None:
        return inherited
    own = time.monotonic() + seconds_of(timeout)
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
        """Wait; return whether the answer came before the deadline."""
        if deadline is None:
            return self._lock.acquire()
        return self._lock.acquire(timeout=max(0.0, min(deadline - time.monotonic(), 4e6)))

    def take(self) -> Any:
        """Return the answer or raise the failure."""
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
        with contextlib.suppress(RuntimeError):  # that loop is closed, so nothing waits
            self._loop.call_soon_threadsafe(action)
