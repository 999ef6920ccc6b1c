"""Makes an io_uring, whose requests no filter sees."""

from __future__ import annotations

import ctypes
from typing import Any

KIND = "Unix socket by path"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    return ctypes.CDLL(None).syscall(425, 4, (ctypes.c_uint * 30)()) >= 0
