"""How much one side of a link lets the other make it hold or do."""

from __future__ import annotations

from typing import NamedTuple

from .frames import FRAME_LIMIT


class LinkLimits(NamedTuple):
    """The limits of one link; None or a huge number where the other side is trusted.

    Attributes:
        frame_bytes: Largest message, in both directions.
        decoded_bytes: Estimated memory of one decoded message.
        queued_bytes: Bytes that may wait until the other side reads them.
        unread_bytes: Decoded bytes of stream items that this side's code has not taken yet.
        array_bytes: Memory of the other side's arrays that are alive here.
        segments: Segments of the other side that are open here, a descriptor each.
        peer_segments: The same for the other side.
        open_calls: Calls of the other side that run at once.
        threads: Threads for outermost blocking calls of the other side.
        nested_threads: Threads for nested ones.
        callables: Callables of this side that the other holds.
        device_handles: Whether arrays on a GPU may go by handle.
    """

    frame_bytes: int = FRAME_LIMIT
    decoded_bytes: int | None = None
    queued_bytes: int = 1 << 30
    unread_bytes: int | None = None
    array_bytes: int | None = None
    segments: int = 4096
    peer_segments: int = 64
    open_calls: int = 20_000
    threads: int = 32
    nested_threads: int = 1_000_000
    callables: int = 100_000
    device_handles: bool = True


TRUSTED = LinkLimits()
"""For a worker: it trusts its host."""
