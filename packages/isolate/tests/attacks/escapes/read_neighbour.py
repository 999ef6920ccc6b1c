"""Reads the code of another extension."""

from __future__ import annotations

from typing import Any

KIND = "read outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    return open(t["neighbour"]).read()
