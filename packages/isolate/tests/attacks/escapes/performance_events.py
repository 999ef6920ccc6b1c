"""Opens a performance event of the kernel."""

from __future__ import annotations

import ctypes
from typing import Any

KIND = "host's memory"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    return ctypes.CDLL(None).syscall(298, (ctypes.c_uint64 * 16)(1 | 112 << 32), 0, -1, -1, 0) >= 0
