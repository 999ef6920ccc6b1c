"""Mounts a file system."""

from __future__ import annotations

import ctypes
import tempfile
from typing import Any

KIND = "mount"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    libc = ctypes.CDLL(None)
    place = tempfile.mkdtemp().encode()
    return libc.mount(b"none", place, b"tmpfs", 0, None) == 0 and libc.umount2(place, 2) == 0
