"""This process's own pool, for people who need no second one; knows only when to make it."""

import os
import threading
from typing import Any

from xfer import posix
from xfer.descriptor import Handle
from xfer.pool import Pool

_pool: Pool | None = None
_lock = threading.Lock()


def default_pool() -> Pool:
    """Return this process's own pool, made on first use with half of the machine's memory as its budget.

    Raises:
        UnsupportedPlatformError: The system has no POSIX file locks.
    """
    global _pool
    posix.require()
    with _lock:
        if _pool is None or _pool.closed:
            _pool = Pool(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
        return _pool


def put(array: Any, *, timeout: float = 0.0) -> Handle:
    """Put an array into this process's own pool; see `Pool.put`."""
    return default_pool().put(array, timeout=timeout)


def release(handle: Handle | bytes) -> None:
    """Release an array of this process's own pool; see `Pool.release`."""
    default_pool().release(handle)


def _after_fork_in_child() -> None:
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
