"""Opens the kernel's core pattern for writing, which would run a program outside."""

from __future__ import annotations

import os
from typing import Any

KIND = "write outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    return os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY)
