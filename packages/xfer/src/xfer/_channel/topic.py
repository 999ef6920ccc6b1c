"""Topics: named streams from many writers to many readers, which outlive the processes at both ends."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections import deque
from typing import Any, NoReturn

from xfer._arguments import whole
from xfer._channel import board as _board
from xfer._channel.board import CURSOR, EVERY, LATEST, WAITS, WRITER, Board
from xfer._channel.end import End, Incoming
from xfer._convert.interchange import Library, check_library
from xfer._forks import on_fork
from xfer._locks import claim
from xfer._shared.default import default_pool
from xfer._shared.handle import Handle
from xfer._shared.pool import Pool
from xfer._shared.reader import READER, present
from xfer._times import deadline, left
from xfer.errors import HandleError, PoolClosedError, StaleHandleError, WaitTimeoutError


def _leave(board: Board, turn: threading.RLock, lock: threading.RLock) -> None:
    """Close a board when no thread uses it; while the interpreter exits, other threads still run."""
    with turn, lock:
        board.close()


class _End(End):
    """What writers and readers of a topic share."""

    def __init__(self, board: Board) -> None:
        super().__init__()
        self._board = board
        self._finalizer = weakref.finalize(self, _leave, board, self._turn, self._lock)
        on_fork(child=self._after_fork_in_child)

    def _ring_own(self) -> None:
        self._board.wake_own()

    def fileno(self) -> int:
        """Return a descriptor that is readable when this end may be ready."""
        with self._lock:
            self._check_open()
            self._armed = True
            self._board.set(WAITS, 1)
            self._board.fence()
            self._board.wake_own()
            return self._board.bell

    def _quiet(self) -> None:
        """Make an armed descriptor readable exactly if this end is ready; the caller holds the lock."""
        if self._armed:
            self._board.read_bell()
            self._board.fence()
            if self._closed or self._exiting or self._can_go_on():  # another thread sleeps until it hears of that
                self._board.wake_own()

    def _can_go_on(self) -> bool:
        raise NotImplementedError

    def _wait(self, end: float | None, watch: list[int]) -> bool:
        """Sleep without the lock until this end may go on; return False when the time is up."""
        seconds = left(end)
        if seconds == 0:
            return False
        taken: list[bool] = []
        try:
            if not claim(self._turn, taken, seconds):
                return left(end) != 0
            if self._closed or self._exiting:
                return True
            board = self._board
            board.set(WAITS, 1)
            board.fence()
            if not self._can_go_on():
                board.sleep(left(end), watch)
            if not self._armed and not self._closed:
                board.set(WAITS, 0)
        finally:
            if taken == [True]:
                self._turn.release()
        return True

    def close(self) -> None:
        """Leave the topic, and end every wait of this end."""
        if self._closed:
            return
        self._closed = True
        self._wake()
        self._finalizer()

    def _after_fork_in_child(self) -> None:
        self._renew()
        if not self._closed:
            self._closed = True
            self._finalizer.detach()
            self._board.drop()


class Subscription(Incoming, _End):
    """A reader of a topic; made by `Topic.subscribe`.

    Example:
        >>> topic = xfer.Topic("docs-subscription")
        >>> with topic.subscribe() as reader:
        ...     topic.publish(np.arange(3))
        ...     reader.recv(timeout=5)
        array([0, 1, 2])
        >>> topic.remove()

    Args:
        name: The topic's name.
        keep: How many publications the topic keeps.
        every: Receive each publication, instead of the latest only.
    """

    def __init__(self, name: str, keep: int, every: bool) -> None:
        super().__init__(Board(name, keep, EVERY if every else LATEST))

    def recv(self, *, timeout: float | None = None, as_: Library = "numpy", pin: bool = False) -> Any:
        """Return the next publication that this reader has not had: no copy, leased until its last view is gone.

        A publication whose writer has died is skipped.

        Args:
            timeout: Seconds to wait; None waits for ever.
            as_: "numpy" or "torch", as in `xfer.get`.
            pin: Copy tensors into pinned memory, as in `xfer.get`.

        Raises:
            WaitTimeoutError: Nothing came in time.
            ChannelClosedError: This end was closed.
        """
        check_library(as_, pin)
        end = deadline(timeout)
        while True:
            with self._lock:
                self._check_open()
                found = self._next(as_, pin)
                if found is not None:
                    return found[0]
            if not self._wait(end, []):
                raise WaitTimeoutError("nothing was published in time")

    def _next(self, as_: Library, pin: bool) -> tuple[Any] | None:
        board = self._board
        while True:
            count, cursor = board.count, board.get(CURSOR)
            if cursor >= count:
                self._quiet()
                return None
            number = max(cursor, count - board.keep) + 1
            raw = board.read(number)
            try:
                if raw is None:  # overwritten meanwhile
                    if board.count == count:
                        self._took(number)
                    continue
                array, fields = READER.array(raw, private=as_ == "torch" and not pin)
            except (StaleHandleError, HandleError):  # released for a newer one, or its writer has died
                self._took(number)
                continue
            self._took(number)
            self._quiet()
            return (present(array, fields, raw, as_, pin),)

    def _took(self, number: int) -> None:
        self._board.set(CURSOR, number)
        self._board.fence()
        self._board.wake(WRITER)

    def _can_go_on(self) -> bool:
        return self._board.get(CURSOR) < self._board.count

    def __reduce__(self) -> NoReturn:
        raise TypeError("cannot pickle a Subscription: pass the Topic, and subscribe in the other process")

    def ready(self) -> bool:
        """Return whether a publication waits."""
        with self._lock:
            self._check_open()
            if self._can_go_on():
                return True
            self._quiet()
            return False


class _Publisher(_End):
    """The writing side of a topic, and what it keeps alive for readers."""

    def __init__(self, name: str, keep: int) -> None:
        super().__init__(Board(name, keep, WRITER))
        self._kept: deque[tuple[int, Pool, Handle]] = deque()
        self._joined: weakref.WeakSet[Pool] = weakref.WeakSet()

    @property
    def removed(self) -> bool:
        """Whether the topic's name was removed, so that no new reader finds this end."""
        with self._lock:
            return not (self._closed or self._exiting) and self._board.removed

    def publish(self, pool: Pool, array: Any, end: float | None) -> None:
        self._check_open()
        if pool not in self._joined:
            self._joined.add(pool)
            pool.on_pressure(self.settle)
        if isinstance(array, Handle):
            pool.retain(array)
            handle: Handle | None = array
        else:
            handle = pool.put(array, timeout=None if end is None else end - time.monotonic())
        try:
            while handle is not None:
                with self._lock:
                    self._check_open()
                    with self._board.writing(end):
                        slow = self._board.slow_readers()
                        if not slow:
                            self._kept.append((self._board.write(bytes(handle)), pool, handle))
                            handle = None
                    if handle is None:
                        self._board.wake(LATEST, EVERY)
                        break
                if not self._wait(end, slow):
                    raise WaitTimeoutError(f"{len(slow)} readers that want every publication took nothing in time")
        finally:
            if handle is not None:
                pool.release_later(handle)
        self.settle()

    def settle(self) -> None:
        """Release what newer publications have overwritten."""
        taken: list[bool] = []
        try:
            if claim(self._lock, taken) and not (self._closed or self._exiting):
                oldest = self._board.count - self._board.keep
                while self._kept and self._kept[0][0] <= oldest:
                    self._release()
        finally:
            if taken == [True]:
                self._lock.release()

    def _can_go_on(self) -> bool:
        return not self._board.slow_readers()

    def close(self) -> None:
        super().close()
        while self._kept:
            self._release()

    def _release(self) -> None:
        _, pool, handle = self._kept.popleft()
        with contextlib.suppress(PoolClosedError):
            pool.release_later(handle)


# What this process publishes by each name stays when the object that published it is dropped.
_publishers: dict[tuple[str, int], _Publisher] = {}
_opening = threading.Lock()


def _after_fork_in_child() -> None:
    global _opening
    _opening = threading.Lock()
    _publishers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class Topic:
    """A named stream from many writers to many readers of one user; the name outlives them all.

    Any process publishes and subscribes by the name; each may be killed and started again at any moment. A reader that
    comes late gets the last publication, for as long as the process that published it lives.

    Args:
        name: The name, 1 to 180 characters.
        keep: How many publications are kept for readers. A reader that is slower misses older ones, unless it
            subscribed with `every`: then writers wait for it.
        pool: Where publications are put; the process's own pool by default.

    Raises:
        ValueError: The topic exists and keeps another number.

    Example:
        >>> topic = xfer.Topic("docs-camera")
        >>> topic.publish(np.arange(3))
        >>> with topic.subscribe() as late:  # in any process
        ...     late.recv(timeout=5)
        array([0, 1, 2])
        >>> topic.remove()
    """

    def __init__(self, name: str, keep: int = 1, *, pool: Pool | None = None) -> None:
        self.name: str = name
        self.keep: int = whole(keep, "keep")
        self._pool = pool
        self._path = _board.path_of(name)
        self._key = self._path, self.keep

    def publish(self, array: Any, *, timeout: float | None = None) -> None:
        """Publish an array or a tree.

        Args:
            array: What `Pool.put` takes, or a `Handle` of this topic's pool, which is not copied again.
            timeout: Seconds to wait for readers that want every publication, and for room in the pool.

        Raises:
            WaitTimeoutError: Such a reader took nothing in time.
            BudgetExceededError: The pool has no room.
            ChannelClosedError: Another thread closed this topic.
            UntrustedFileError: What has the topic's name in shared memory is not this user's alone.
        """
        pool = self._pool
        if pool is None or pool.closed:
            pool = self._pool = default_pool()
        with _opening:
            publisher = _publishers.get(self._key)
            if publisher is not None and publisher.removed:
                publisher.close()
                publisher = None
            if publisher is None:
                publisher = _publishers[self._key] = _Publisher(self.name, self.keep)
        publisher.publish(pool, array, deadline(timeout))

    def subscribe(self, *, every: bool = False) -> Subscription:
        """Return a reader, which starts with the last publication.

        Args:
            every: Have writers wait for this reader, so that it gets every publication.
        """
        return Subscription(self.name, self.keep, every)

    def close(self) -> None:
        """Release what this process has published by this name, and end its waits.

        The name stays: a later `publish` opens the topic again.
        """
        with _opening:
            publisher = _publishers.pop(self._key, None)
        if publisher is not None:
            publisher.close()

    def remove(self) -> None:
        """Close, and remove the name. Readers that are attached lose sight of what is published later."""
        with _opening:
            gone = [_publishers.pop(key) for key in list(_publishers) if key[0] == self._path]
        for publisher in gone:
            publisher.close()
        _board.remove(self._path)

    def __reduce__(self) -> tuple[Any, tuple[str, int]]:
        return Topic, (self.name, self.keep)

    def __enter__(self) -> Topic:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
