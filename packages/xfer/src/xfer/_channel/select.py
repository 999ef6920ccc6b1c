"""Waiting for several ends at once."""

from __future__ import annotations

import select
from collections.abc import Iterable
from typing import Protocol, TypeVar

from xfer._times import deadline, left


class Waitable(Protocol):
    """An end of a channel or of a topic."""

    def ready(self) -> bool:
        """Return whether the end would not wait."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when the end may be ready."""


W = TypeVar("W", bound=Waitable)


def wait(ends: Iterable[W], timeout: float | None = None) -> list[W]:
    """Wait until at least one of several ends can go on, and return all that can.

    A receiver can go on when an array waits, a sender when there is room; both when the other end has closed or died.

    Args:
        ends: Receivers, senders, and ends of topics.
        timeout: Seconds to wait; None waits for ever.

    Returns:
        The ends that are ready, in the order given; none if the time is up.

    Raises:
        ValueError: `ends` is one end instead of a list, holds something else, or is empty without a timeout.

    Example:
        >>> with xfer.Channel() as one, xfer.Channel() as two:
        ...     two.sender.send(np.zeros(3))
        ...     xfer.wait([one.receiver, two.receiver], timeout=5) == [two.receiver]
        True
    """
    if hasattr(ends, "ready"):  # iterating over a receiver would take its arrays
        raise ValueError(f"got one {type(ends).__name__}, want a list of ends")
    ends, end = list(ends), deadline(timeout)
    if not ends and timeout is None:
        raise ValueError("got no ends and no timeout, so that the wait would never end")
    strange = next((one for one in ends if not hasattr(one, "ready")), None)
    if strange is not None:
        raise ValueError(f"got a {type(strange).__name__}, want receivers, senders or ends of topics")
    poll = select.poll()
    for one in ends:
        poll.register(one.fileno(), select.POLLIN)
    while True:
        ready = [one for one in ends if one.ready()]
        seconds = left(end)
        if ready or seconds == 0:
            return ready
        poll.poll(None if seconds is None else seconds * 1000)
