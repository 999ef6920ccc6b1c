"""Mounts by the newer calls."""

from __future__ import annotations

import ctypes
from typing import Any

KIND = "mount"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    return ctypes.CDLL(None).syscall(428, -100, b"/", 1) >= 0
