"""Attaches to the host as a debugger and lets go."""

from __future__ import annotations

import ctypes
import os
from typing import Any

KIND = "host's memory"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    libc = ctypes.CDLL(None)
    if libc.ptrace(0x4206, t["pid"], 0, 0) != 0:
        return None
    libc.ptrace(17, t["pid"], 0, 0)
    return os.readlink("/proc/self/ns/pid") == t["pid_namespace"]
