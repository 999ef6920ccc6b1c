"""Becomes another user."""

from __future__ import annotations

import os
from typing import Any

KIND = "capabilities"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    if os.getuid() == 12345:
        return None
    os.setuid(12345)
    return True
