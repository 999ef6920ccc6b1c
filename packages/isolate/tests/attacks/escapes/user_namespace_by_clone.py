"""Makes one with clone."""

from __future__ import annotations

import ctypes
import os
from typing import Any

KIND = "user namespaces"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    child = ctypes.CDLL(None).syscall(56, 0x10000000 | 17, 0, 0, 0, 0)
    if child == 0:
        os._exit(0)
    return child > 0 and os.waitpid(child, 0) is not None
