"""Lists the cache of uv."""

from __future__ import annotations

import os
from typing import Any

KIND = "read outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    return os.listdir(t["uv_cache"])
