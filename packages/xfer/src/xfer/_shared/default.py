"""This process's own pool, for programs that need no second one."""

from __future__ import annotations

import os
import threading
from typing import Any

from xfer._limits import memory_limit
from xfer._shared.handle import Handle
from xfer._shared.lease import require_locks
from xfer._shared.pool import Pool

VARIABLE = "XFER_BUDGET"
_FALLBACK = "1GiB"

_pool: Pool | None = None
_lock = threading.Lock()


def default_budget() -> int | str:
    """Return the budget of the default pool: the environment variable XFER_BUDGET, or half of the memory limit."""
    text = os.environ.get(VARIABLE)
    if text:
        return text
    limit = memory_limit()
    return limit.nbytes // 2 if limit else _FALLBACK


def default_pool() -> Pool:
    """Return this process's own pool, made on first use.

    Its budget is the environment variable XFER_BUDGET, or half of the memory that this process may use: the smallest of
    the machine's memory, its control group's limit and RLIMIT_AS. `set_default_pool` chooses another pool.

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
            _pool = Pool(default_budget())
        return _pool


def set_default_pool(pool: Pool) -> None:
    """Make a pool this process's own, for `put`, `release`, and channels and stores without a pool.

    Args:
        pool: The pool. The one before stays open.

    Example:
        >>> before = xfer.default_pool()
        >>> xfer.set_default_pool(xfer.Pool("64MiB"))
        >>> xfer.default_pool().budget
        67108864
        >>> xfer.set_default_pool(before)
    """
    global _pool
    with _lock:
        _pool = pool


def put(array: Any, *, timeout: float | None = 0.0, consume: bool = False, stream: Any = None) -> Handle:
    """Copy an array or a tree into this process's own pool and return its handle; see `Pool.put`.

    Args:
        array: What `Pool.put` takes.
        timeout: Seconds to wait for readers to finish if the budget is spent; None waits for ever.
        consume: The first reader takes the array over: no release is needed.
        stream: The stream on which a CUDA array was last written; without it, `put` waits for its device.

    Example:
        >>> handle = xfer.put(np.arange(3))
        >>> xfer.get(handle)
        array([0, 1, 2])
        >>> xfer.release(handle)
    """
    return default_pool().put(array, timeout=timeout, consume=consume, stream=stream)


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
