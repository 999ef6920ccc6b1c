"""Timeouts: when one is up, and how long to sleep until then."""

from __future__ import annotations

import math
import time

_LONGEST = 86_400.0  # seconds; more than 24 days do not fit what the system's calls take


def deadline(timeout: float | None) -> float | None:
    """Return when a timeout is up; raise ValueError if it is no number of seconds."""
    if timeout is None:
        return None
    try:
        end = time.monotonic() + timeout
    except TypeError:
        end = math.nan
    if end != end:  # NaN
        raise ValueError(f"got timeout {timeout!r:.80}, want a number of seconds, or None to wait for ever")
    return end


def left(end: float | None) -> float | None:
    """Return how many seconds to sleep at most: 0 where the time is up, at most a day; None for ever."""
    return None if end is None else float(min(_LONGEST, max(0.0, end - time.monotonic())))
