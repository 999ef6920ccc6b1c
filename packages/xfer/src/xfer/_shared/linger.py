"""Keeps what readers still lease after their pool was closed: CUDA arrays, which live in the producer's memory."""

from __future__ import annotations

import threading
import time

from xfer._shared.lease import Leases
from xfer._shared.slots import Retired, Slots

_PAUSE = 0.1
_lock = threading.Lock()
_kept: list[Retired] = []
_thread: threading.Thread | None = None


def linger(slots: Slots, kept: list[Retired]) -> None:
    """Keep the segments of these slots open, and what the slots keep alive, until no reader leases them.

    Args:
        slots: Where the segments are listed; they leave that list.
        kept: The slots.
    """
    global _thread
    for entry in kept:
        slots.segments.pop(entry.place.segment.id, None)
    with _lock:
        _kept.extend(kept)
        if _thread is None:
            _thread = threading.Thread(target=_watch, name="xfer-linger", daemon=True)
            _thread.start()


def lingering() -> int:
    """Return how many slots are kept."""
    with _lock:
        return len(_kept)


def _watch() -> None:
    global _thread
    while True:
        with _lock:
            ended = [entry for entry in _kept if not Leases.held(entry.place.segment.fd, entry.place.slot, 1)]
            _kept[:] = [entry for entry in _kept if entry not in ended]
            open_ids = {entry.place.segment.id for entry in _kept}
            for segment in {entry.place.segment.id: entry.place.segment for entry in ended}.values():
                if segment.id not in open_ids:
                    segment.close()
            del ended
            if not _kept:
                _thread = None
                return
        time.sleep(_PAUSE)
