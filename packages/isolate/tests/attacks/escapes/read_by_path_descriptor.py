"""Opens the path only, and then the descriptor under /proc."""

from __future__ import annotations

import os
from typing import Any

KIND = "read outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    fd = os.open(t["secret"], os.O_PATH)
    return open(f"/proc/self/fd/{fd}").read()
