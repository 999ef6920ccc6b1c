"""Attaches to the System V shared memory of the host."""

from __future__ import annotations

import ctypes
from typing import Any

KIND = "host's memory"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    libc = ctypes.CDLL(None)
    libc.shmat.restype = ctypes.c_void_p
    return t["shm"] >= 0 and libc.shmat(t["shm"], None, 0o10000) not in (None, 2**64 - 1)
