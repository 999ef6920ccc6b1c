"""Truncates the secret by its path."""

from __future__ import annotations

import os
from typing import Any

KIND = "write outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    os.truncate(t["victim"], 0)
    return True
