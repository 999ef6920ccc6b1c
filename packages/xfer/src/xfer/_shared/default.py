"""This process's own pool, for programs that need no second one."""

from __future__ import annotations

import os
import threading
from typing import Any

from xfer._shared.handle import Handle
from xfer._shared.lease import require_locks
from xfer._shared.pool import Pool

_pool: Pool | None = None
_lock = threading.Lock()


def default_pool() -> Pool:
    """Return this process's own pool, made on first use with half of the machine's memory as its budget.

    Raises:
        UnsupportedPlatformError: The system has no POSIX file locks.

    Example:
        >>> xfer.default_pool().closed
        False
    """
    global _pool
    require_locks()
    with _lock:
        if _pool is None or _pool.closed:
            _pool = Pool(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
        return _pool


def put(array: Any, *, timeout: float = 0.0) -> Handle:
    """Copy an array into this process's own pool and return its handle; see `Pool.put`.

    Args:
        array: What `Pool.put` takes.
        timeout: Seconds to wait for readers to finish if the budget is spent.

    Example:
        >>> handle = xfer.put(np.arange(3))
        >>> xfer.get(handle)
        array([0, 1, 2])
        >>> xfer.release(handle)
    """
    return default_pool().put(array, timeout=timeout)


def release(handle: Handle | bytes) -> None:
    """Release an array of this process's own pool; see `Pool.release`.

    Args:
        handle: The array's handle, or its bytes.

    Example:
        >>> handle = xfer.put(np.arange(3))
        >>> xfer.release(handle)
        >>> xfer.get(handle)  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        xfer.errors.StaleHandleError: ...
    """
    default_pool().release(handle)


def _after_fork_in_child() -> None:
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
