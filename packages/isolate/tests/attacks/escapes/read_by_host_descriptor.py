"""Opens a descriptor of the host again."""

from __future__ import annotations

import os
from typing import Any

KIND = "read outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    return [os.open(f"/proc/{t['pid']}/fd/{number}", os.O_RDONLY) for number in range(3, 6)]
