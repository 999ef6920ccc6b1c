"""Makes a BPF map."""

from __future__ import annotations

import ctypes
from typing import Any

KIND = "new privileges"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    return ctypes.CDLL(None).syscall(321, 0, (ctypes.c_uint * 16)(2, 4, 4, 1), 64) >= 0
