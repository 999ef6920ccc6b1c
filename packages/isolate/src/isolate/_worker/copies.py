"""Large copies away from event loops: a coroutine that sends large arrays has them copied in another thread."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

ON_LOOP = 2 << 20
"""Bytes of arrays that one message copies on an event loop's thread."""


class CopyNeededError(BaseException):
    """Encoding would copy too much on an event loop's thread; nothing was sent, and it is to be done elsewhere."""


class _State(threading.local):
    """Of each thread.

    Attributes:
        left: Bytes that may still be copied for the current message; None for no limit.
        versions: What the tracker has said of arrays in an attempt that ended with `CopyNeededError`, by object.
        deadline: When the call ends whose arguments are being encoded; None for no end, and for answers.
    """

    left: int | None = None
    deadline: float | None = None
    versions: dict[int, int | None]

    def __init__(self) -> None:
        self.versions = {}


STATE = _State()


def count(nbytes: int) -> None:
    """Count bytes that are about to be copied.

    Raises:
        CopyNeededError: They are too many for this thread.
    """
    left = STATE.left
    if left is not None:
        if nbytes > left:
            raise CopyNeededError
        STATE.left = left - nbytes


class Copier:
    """A thread for the copies of one link, started with the first of them."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._closed = False

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Run a function in the thread, or here if the link is closed and it can only raise."""
        if self._closed:
            done: Future[Any] = Future()
            try:
                done.set_result(function(*args))
            except Exception as failure:
                done.set_exception(failure)
            return done
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "isolate-copy")
        return self._thread.submit(function, *args)

    def again(self, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Run a function that has raised `CopyNeededError` here, in the thread; the caller awaits the result."""
        versions, STATE.versions = STATE.versions, {}
        context = contextvars.copy_context()
        return asyncio.wrap_future(self.submit(context.run, _with_versions, versions, function, *args))

    def close(self) -> None:
        """End the thread after what it does."""
        self._closed = True
        if self._thread is not None:
            self._thread.shutdown(wait=False)


def _with_versions(versions: dict[int, int | None], function: Callable[..., Any], *args: Any) -> Any:
    STATE.versions = versions
    try:
        return function(*args)
    finally:
        STATE.versions = {}
