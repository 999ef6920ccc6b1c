"""Waits that can be ended from outside: by the end of the interpreter, and through asyncio."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xfer._shared.files import typed_errors
from xfer._weak_methods import WeakMethods

if TYPE_CHECKING:
    import asyncio

_stops = WeakMethods()


def on_exit(stop: Callable[[], None]) -> None:
    """Call a bound method when the interpreter starts to exit, before it waits for its threads.

    Args:
        stop: Ends the waits of its object, from any thread.
    """
    _stops.add(stop)


def _install() -> None:
    # Registered after the executors' own hook, so called before it waits for its threads. Without this private function
    # a thread that waits for ever keeps the interpreter from exiting, as it does with `queue.Queue`.
    import concurrent.futures.thread  # noqa: F401 - for the order

    register = getattr(threading, "_register_atexit", None)
    if register is not None:
        register(_stops)


_install()


class Sleepers:
    """The coroutines that wait for a descriptor; `wake` ends their waits from any thread."""

    def __init__(self) -> None:
        self._futures: set[asyncio.Future[None]] = set()

    async def readable(self, fd: int, seconds: float | None) -> None:
        """Wait until a descriptor is readable, `wake` is called, or the time is up.

        Args:
            fd: The descriptor.
            seconds: How long at most; None for ever.
        """
        import asyncio  # here, since only coroutines need it

        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with typed_errors("a wait"):
            own = os.dup(fd)  # an event loop watches a descriptor once, and several coroutines may wait for this one
        try:
            loop.add_reader(own, _finish, future)
            self._futures.add(future)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await future
        finally:
            self._futures.discard(future)
            loop.remove_reader(own)
            os.close(own)

    def wake(self) -> None:
        """End all waits."""
        for future in list(self._futures):
            with contextlib.suppress(RuntimeError):  # that loop is closed
                future.get_loop().call_soon_threadsafe(_finish, future)


def _finish(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_result(None)
