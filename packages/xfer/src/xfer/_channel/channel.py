"""A channel: makes the memory of a stream and its two ends."""

from __future__ import annotations

import weakref
from typing import Any

from xfer._arguments import whole
from xfer._channel.end import Closing
from xfer._channel.endpoints import SPIN
from xfer._channel.receiver import Receiver
from xfer._channel.ring import RingOwner
from xfer._channel.sender import Sender
from xfer._shared.pool import Pool

__all__ = ["Channel", "Receiver", "Sender"]


class Channel(Closing):
    """A bounded channel between two processes: give `sender` to one and `receiver` to the other.

    Either end may be restarted: a process that attaches by the same bytes takes over.

    Args:
        capacity: How many arrays may be under way.
        pool: Where the sender puts arrays, if the sender is this process; otherwise the sender's own pool is used.
        spin: Seconds that an end looks for the other's move before it sleeps: saves a wake-up (about 4 us) per message.
        compiled: Use the compiled core where it could be built; without it the same is done in Python.

    Raises:
        UnsupportedPlatformError: This is not Linux.

    Example:
        >>> with xfer.Channel(capacity=4) as channel:
        ...     channel.sender.send(np.arange(3), timeout=5)
        ...     channel.receiver.recv(timeout=5)
        array([0, 1, 2])
    """

    def __init__(
        self, capacity: int = 64, *, pool: Pool | None = None, spin: float = SPIN, compiled: bool = True
    ) -> None:
        self._owner = RingOwner(whole(capacity, "capacity"))
        self._finalizer = weakref.finalize(self, self._owner.close)
        self.sender: Sender = Sender(self._owner.token, spin, compiled, pool)
        self.receiver: Receiver = Receiver(self._owner.token, spin, compiled)
        self.sender.pair(self.receiver)
        self.receiver.pair(self.sender)

    def close(self) -> None:
        """Close both ends where they are held by this process, and let no process attach any more."""
        try:
            self.receiver.close()
            if self.sender.attached:
                self.sender.close(timeout=0)
        finally:
            self._finalizer()

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle a Channel: give its `sender` to one process and its `receiver` to another")
