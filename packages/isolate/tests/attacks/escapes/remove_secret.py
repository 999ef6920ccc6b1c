"""Removes a file of the host's user."""

from __future__ import annotations

import os
from typing import Any

KIND = "write outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    os.unlink(t["victim"])
    return True
