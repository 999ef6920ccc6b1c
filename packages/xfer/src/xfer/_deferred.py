"""Work that finalizers ask for and that needs a lock which the finalizer itself may not wait for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from xfer._locks import claim

T = TypeVar("T")


class Deferred(Generic[T]):
    """A queue of items to work on under a lock.

    A finalizer may run at any moment, also while its own thread holds the lock. It calls `note`, which never waits: the
    work is done at once if the lock is free, otherwise by the next `note` or `drain`.

    Args:
        lock: The lock that the work needs.
        work: Called with each item while the lock is held.
    """

    def __init__(self, lock: threading.Lock, work: Callable[[T], object]) -> None:
        self._lock, self._work = lock, work
        self._items: deque[T] = deque()

    def __bool__(self) -> bool:
        return bool(self._items)

    def note(self, item: T) -> None:
        """Queue an item, and work on the queue if the lock is free."""
        self._items.append(item)
        self.catch_up()

    def catch_up(self) -> None:
        """Work on the queue unless the lock is held; call it after releasing the lock."""
        while self._items:
            taken: list[bool] = []
            try:
                if not claim(self._lock, taken):
                    return
                self.drain()
            finally:
                if taken == [True]:
                    self._lock.release()

    def drain(self) -> None:
        """Work on the queue; the caller holds the lock."""
        while self._items:
            self._work(self._items.popleft())
