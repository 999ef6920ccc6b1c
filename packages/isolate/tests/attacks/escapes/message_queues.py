"""Reads messages of the host."""

from __future__ import annotations

import ctypes
import os
from typing import Any

KIND = "host's memory"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    libc = ctypes.CDLL(None, use_errno=True)
    opened = libc.mq_open(t["queue"].encode(), os.O_RDONLY)
    return opened >= 0 or libc.msgget(t["queue_key"], 0) >= 0 or libc.semget(t["queue_key"], 0, 0) >= 0
