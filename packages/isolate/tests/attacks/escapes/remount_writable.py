"""Makes the system writable again."""

from __future__ import annotations

import ctypes
from typing import Any

KIND = "mount"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    return ctypes.CDLL(None).mount(b"none", b"/usr", None, 32 | 4096, None) == 0
