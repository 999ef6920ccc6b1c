"""The current stream of each thread and device, and the current allocator."""

from __future__ import annotations

import threading

from cupy._machine import machine

local = threading.local()
allocator = None
ending = False


def streams():
    """Return this thread's current streams by device."""
    if not hasattr(local, "streams"):
        local.streams = {}
    return local.streams


def current_stream(device=-1):
    """Return this thread's current stream of a device."""
    from cupy.cuda import Stream

    return streams().get(machine.device if device < 0 else device, Stream.null)
