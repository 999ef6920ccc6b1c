"""Waiting for several ends at once."""

from __future__ import annotations

import select
from collections.abc import Iterable
from typing import Protocol, TypeVar

from xfer._channel.end import deadline, left


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

    Example:
        >>> with xfer.Channel() as one, xfer.Channel() as two:
        ...     two.sender.send(np.zeros(3))
        ...     xfer.wait([one.receiver, two.receiver], timeout=5) == [two.receiver]
        True
    """
    ends, end = list(ends), deadline(timeout)
    poll = select.poll()
    for one in ends:
        poll.register(one.fileno(), select.POLLIN)
    while True:
        ready = [one for one in ends if one.ready()]
        seconds = left(end)
        if ready or seconds == 0:
            return ready
        poll.poll(None if seconds is None else seconds * 1000)
