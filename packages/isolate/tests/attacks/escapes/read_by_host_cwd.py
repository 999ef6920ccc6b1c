"""Reads below the host's working folder."""

from __future__ import annotations

import os
from typing import Any

KIND = "read outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    return os.listdir(f"/proc/{t['pid']}/cwd")
