"""Timeouts: when one is up, and how long to sleep until then."""

from __future__ import annotations

import time

_LONGEST = 86_400.0  # seconds; more than 24 days do not fit what the system's calls take


def deadline(timeout: float | None) -> float | None:
    """Return when a timeout is up."""
    return None if timeout is None else time.monotonic() + timeout


def left(end: float | None) -> float | None:
    """Return how many seconds to sleep at most: 0 where the time is up, at most a day; None for ever."""
    return None if end is None else float(min(_LONGEST, max(0.0, end - time.monotonic())))
