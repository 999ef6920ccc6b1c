"""Reads the keys of the user's session."""

from __future__ import annotations

import ctypes
from typing import Any

KIND = "host's memory"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    return ctypes.CDLL(None).syscall(250, 0, -3, 0) >= 0
