"""How many processes and threads a worker has, as /proc shows them, and which of its limits that exceeds."""

from __future__ import annotations

import contextlib
import os

OVER_LIMIT = {"processes": 71, "threads": 72}
"""What is counted, and the exit code of a supervisor whose worker had more than its limit."""
COUNT_SECONDS = 0.1
"""Seconds between two counts."""


def counted(limits: dict[str, int]) -> dict[str, int]:
    """Return those of the limits that are counted here."""
    return {name: limits[name] for name in OVER_LIMIT if name in limits}


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that these have started."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children = _children(waiting.pop())
        found += children
        waiting += children
    return found


def exceeded(pids: list[int], limits: dict[str, int]) -> str:
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
