"""Opens the kernel's emergency commands for writing."""

from __future__ import annotations

import os
from typing import Any

KIND = "write outside"


def attack(_t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    return os.open("/proc/sysrq-trigger", os.O_WRONLY)
