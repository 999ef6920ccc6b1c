"""Writes into the cache of uv."""

from __future__ import annotations

import os
from typing import Any

KIND = "write outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    path = os.path.join(t["uv_cache"], "isolate-attack")
    with open(path, "w") as file:
        file.write("x")
    os.unlink(path)
    return True
