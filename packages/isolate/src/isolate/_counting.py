"""How many processes and threads a worker has, as /proc shows them; the host counts, since no worker can stop it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future

SECONDS = 0.1
"""Seconds between two counts."""


class Counter:
    """Counts the processes and threads of one worker some times a second, elsewhere than on the loop.

    Args:
        loop: The host's event loop.
        submit: Runs a function in another thread.
        root: The process that the worker's processes descend from; it does not count.
        skipped: How many of its first descendants do not count either.
        limits: The most `processes` and `threads`; other limits are ignored.
        over: Called once on the loop, with what has exceeded its limit.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        submit: Callable[..., Future[str]],
        root: int,
        skipped: int,
        limits: Mapping[str, int],
        over: Callable[[str], None],
    ) -> None:
        self._loop, self._submit, self._over = loop, submit, over
        self._root, self._skipped = root, skipped
        self._limits = {name: limits[name] for name in ("processes", "threads") if name in limits}
        self._ended = not self._limits
        self._count()

    def end(self) -> None:
        """Count no more."""
        self._ended = True

    def _count(self) -> None:
        if not self._ended:
            try:
                self._submit(self._exceeded).add_done_callback(self._counted)
            except RuntimeError:  # no thread can be started now, or the host is being closed
                self._again()

    def _exceeded(self) -> str:
        return exceeded(descendants(self._root)[self._skipped :], self._limits)

    def _again(self) -> None:
        self._loop.call_later(SECONDS, self._count)

    def _counted(self, done: Future[str]) -> None:
        if not done.cancelled():
            over = "" if done.exception() else done.result()  # for want of memory, it could not be counted
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._judge, over)

    def _judge(self, over: str) -> None:
        if over and not self._ended:
            self._ended = True
            self._over(over)
        else:
            self._again()


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that these have started."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children = _children(waiting.pop())
        found += children
        waiting += children
    return found


def exceeded(pids: list[int], limits: Mapping[str, int]) -> str:
    """Return which limit these processes exceed; empty if none."""
    if len(pids) > limits.get("processes", len(pids)):
        return "processes"
    if "threads" in limits and sum(map(_threads, pids)) > limits["threads"]:
        return "threads"
    return ""


def _threads(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:  # it has ended
        return 0


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found += map(int, file.read().split())
    return found
