"""Looks for processes that are none of its own, and reads what they know."""

from __future__ import annotations

import contextlib
import os
from typing import Any

KIND = "host's environment variables"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    own = {os.getpid(), os.getppid(), 1}
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        if pid in own:
            continue
        for name in ("environ", "cmdline", "maps", "mem"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/{name}", "rb") as file:
                return pid, name, file.read(10)
        with contextlib.suppress(OSError):
            os.kill(pid, 0)
            return pid, "signal"
    return None
