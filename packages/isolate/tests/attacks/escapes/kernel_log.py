"""Reads the kernel's log."""

from __future__ import annotations

import os
from typing import Any

KIND = "raw devices"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    return os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
