"""Locks that are given back although a signal handler, such as that of Ctrl-C, raises an error at any moment.

Python runs a handler after a call has returned. So it can raise between `lock.acquire(...)` and the `try` behind it,
and the lock stays held for ever. `with lock` has no such gap, but always waits.
"""

from __future__ import annotations

import threading
from typing import Any


def claim(lock: threading.Lock | Any, taken: list[bool], seconds: float | None = 0.0) -> bool:
    """Take a lock, and note in the same step whether that worked.

    The caller's `finally` calls `lock.release()` itself if `taken == [True]`: no handler runs in between.

    Args:
        lock: The lock, or an RLock.
        taken: An empty list, which gets True if the lock is held now.
        seconds: How long to wait; None waits for ever.
    """
    if seconds == 0:
        taken.extend(map(lock.acquire, (False,)))
    else:
        taken.extend(map(lock.acquire, (True,), (-1.0 if seconds is None else seconds,)))
    return taken == [True]
