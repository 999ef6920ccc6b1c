"""Reads a disk."""

from __future__ import annotations

import os
import stat
from typing import Any

KIND = "raw devices"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    for name in os.listdir("/dev"):
        try:
            if stat.S_ISBLK(os.stat(f"/dev/{name}").st_mode):
                os.close(os.open(f"/dev/{name}", os.O_RDONLY))
                return name
        except OSError:
            continue
    return None
