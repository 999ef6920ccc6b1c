"""Sets the times of the secret."""

from __future__ import annotations

import os
from typing import Any

KIND = "change modes outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    os.utime(t["secret"], (1, 1))
    return True
