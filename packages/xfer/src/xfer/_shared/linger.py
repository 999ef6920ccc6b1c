"""Keeps CUDA arrays that readers still lease after their release, after their pool was closed, and at exit.

They live in the producer's memory, so the producer must keep them until the kernel reports that no reader is left.
"""

from __future__ import annotations

import _thread
import atexit
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from xfer._shared.lease import Leases
from xfer._shared.slots import Retired, Slots

AT_EXIT = 10.0
"""Seconds that a process waits at its end for readers of its CUDA arrays."""

_FIRST_PAUSE, _PAUSE = 0.001, 0.1
_lock = threading.Lock()
_tasks: list[Callable[[], bool]] = []
_runs = False
_inherited: list[Callable[[], bool]] = []


def linger(slots: Slots, kept: list[Retired]) -> None:
    """Keep the segments of these slots open, and what the slots keep alive, until no reader leases them.

    Args:
        slots: Where the segments are listed; they leave that list.
        kept: The slots.
    """
    for entry in kept:
        slots.segments.pop(entry.place.segment.id, None)

    def done() -> bool:
        ended = [entry for entry in kept if not Leases.held(entry.place.segment.fd, entry.place.slot, 1)]
        kept[:] = [entry for entry in kept if entry not in ended]
        open_ids = {entry.place.segment.id for entry in kept}
        for segment in {entry.place.segment.id: entry.place.segment for entry in ended}.values():
            if segment.id not in open_ids:
                segment.close()
        return not kept

    watch(done)


def watch(done: Callable[[], bool]) -> None:
    """Call a function after a millisecond, then after growing pauses of at most 0.1 s, until it returns True.

    Args:
        done: Gives back what is no longer leased, and returns whether nothing is left.
    """
    global _runs
    with _lock:
        _tasks.append(done)
        if not _runs:
            with suppress(RuntimeError):  # no new thread while the interpreter exits: `_at_exit` does the work
                _thread.start_new_thread(_watch, ())  # a `Thread` would wait here until it runs
                _runs = True


def lingering() -> int:
    """Return how many functions are called."""
    with _lock:
        return len(_tasks)


class Closable(Protocol):
    """What is closed at exit."""

    def close(self) -> None:
        """Make every handle stale, and keep what readers lease."""


def close_at_exit(pool: Closable) -> None:
    """Close a pool at exit, before the wait for readers, while it lives.

    Args:
        pool: The pool.
    """
    _pools.add(pool)


_pools: weakref.WeakSet[Closable] = weakref.WeakSet()


def _look() -> bool:
    """Call each function once; return whether any is left."""
    with _lock:
        _tasks[:] = [task for task in _tasks if not task()]
        return bool(_tasks)


def _watch() -> None:
    global _runs
    pause = _FIRST_PAUSE
    while True:
        time.sleep(pause)
        pause = min(2 * pause, _PAUSE)
        with _lock:
            _tasks[:] = [task for task in _tasks if not task()]
            if not _tasks:
                _runs = False
                return


def _at_exit() -> None:
    for pool in list(_pools):
        pool.close()
    deadline = time.monotonic() + AT_EXIT
    while _look():
        if time.monotonic() > deadline:
            warnings.warn(
                f"this process ends while others use its CUDA arrays, after waiting {AT_EXIT:.0f} s: what they read "
                "from now on is undefined",
                RuntimeWarning,
                stacklevel=1,
            )
            return
        time.sleep(_PAUSE)


def _after_fork_in_child() -> None:
    global _lock, _runs
    _lock, _runs = threading.Lock(), False
    _inherited.extend(_tasks)  # the arrays are the parent's: freeing them here would call CUDA
    _tasks.clear()
    _pools.clear()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
