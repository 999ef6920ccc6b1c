"""Enters the namespaces of another process."""

from __future__ import annotations

import ctypes
import os
from typing import Any

KIND = "user namespaces"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    fd = os.open("/proc/1/ns/mnt", os.O_RDONLY)
    return ctypes.CDLL(None).setns(fd, 0) == 0
