"""Turns: the connections of one event loop share its thread, and those that need little of it are served at once."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable

if sys.platform == "linux":
    import resource

TURN = 0.001
"""Seconds after which a connection's remaining frames, and all busy connections together, wait for others."""
_MEMORY = 0.1
"""Seconds over which the use of the thread is remembered, and for which a connection counts as the only one."""
_LIGHT = 0.002
"""Seconds of the thread in that time, up to which a connection is served at once."""
_LONG = 0.0003
"""Seconds above which it is asked whether the kernel interrupted a turn."""
_FREE = 3.0
"""While one that needs little is served too, busy connections leave the thread free for so many times as long as they
had it."""
_PAUSE = 0.01
"""Seconds that this takes at most: a turn that the kernel has interrupted is no reason to wait for long."""
_SEEN = 0.05
"""Seconds for which such a connection is remembered."""


class Usage:
    """How much of the loop's thread one connection has used lately; fades with time.

    Attributes:
        waited: When it last had to wait for its turn.
    """

    __slots__ = ("_at", "_seconds", "_switches", "waited")

    def __init__(self) -> None:
        self.waited: float = -_MEMORY
        self._seconds = 0.0
        self._at = 0.0
        self._switches = 0

    def add(self, began: float, now: float) -> None:
        """Count the time from its begin until now."""
        seconds = now - began
        if seconds > _LONG:
            # The kernel may have given the processor to others meanwhile; that is not this connection's fault.
            before, self._switches = self._switches, _switches()
            if self._switches != before:
                seconds = _LONG
        past, self._at = now - self._at, now  # as `at`, without a call
        self._seconds = self._seconds * (1 - past / _MEMORY) + seconds if past < _MEMORY else seconds

    def at(self, now: float) -> float:
        """Return the seconds that are remembered."""
        past = now - self._at
        return self._seconds * (1 - past / _MEMORY) if past < _MEMORY else 0.0


def _switches() -> int:
    """Return how often the kernel has taken the processor away from this thread."""
    if sys.platform != "linux":
        return 0
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


class Turns:
    """Decides which connection of an event loop may use its thread now; used on that thread only.

    Args:
        loop: The event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[tuple[Usage, Callable[[], None]]] = []
        self._running = False
        self._last: Usage | None = None
        self._changed = 0.0
        self._light: Usage | None = None
        self._light_at = 0.0
        self._not_before = 0.0

    def may_begin(self, usage: Usage, now: float) -> bool:
        """Return whether a connection with that usage may begin at once; if not, it must `wait`."""
        if self._last is not usage:
            if self._last is not None:
                self._changed = now
            self._last = usage
        elif now - self._changed > _MEMORY:  # no other connection was served meanwhile
            return True
        if usage.at(now) >= _LIGHT:
            return False
        if now - usage.waited > _MEMORY:  # else it is a busy one that the kernel kept from its turns
            self._light, self._light_at = usage, now
        return True

    def wait(self, usage: Usage, turn: Callable[[], None]) -> None:
        """Call `turn` when no connection with less usage waits; it returns within about `TURN`."""
        usage.waited = time.perf_counter()
        self._waiting.append((usage, turn))
        if not self._running:
            self._running = True
            self._later()

    def _later(self) -> None:
        pause = self._not_before - time.perf_counter()
        if pause > 0:
            self._loop.call_later(pause, self._run)
        else:
            self._loop.call_soon(self._run)

    def _run(self) -> None:
        began = now = time.perf_counter()
        while self._waiting and now - began < TURN:
            at = [usage.at(now) for usage, _ in self._waiting]
            self._waiting.pop(at.index(min(at)))[1]()
            now = time.perf_counter()
        if self._light is not None and now - self._light_at < _SEEN and self._light.at(now) < _LIGHT:
            self._not_before = now + min(_FREE * (now - began), _PAUSE)
        self._running = bool(self._waiting)
        if self._running:
            self._later()
