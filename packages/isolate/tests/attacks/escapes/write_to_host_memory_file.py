"""Opens the host's memory under /proc."""

from __future__ import annotations

import os
from typing import Any

KIND = "host's memory"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    return os.open(f"/proc/{t['pid']}/mem", os.O_RDWR)
