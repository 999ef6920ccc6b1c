"""Climbs out of its own folder."""

from __future__ import annotations

import os
from typing import Any

KIND = "read outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    return open(os.path.join(os.path.dirname(__file__), "../" * 30 + t["secret"])).read()
