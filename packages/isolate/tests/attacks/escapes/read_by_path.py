"""Reads a file of the host's user by its path."""

from __future__ import annotations

from typing import Any

KIND = "read outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    return open(t["secret"]).read()
