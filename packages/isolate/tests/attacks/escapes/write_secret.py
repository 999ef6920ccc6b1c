"""Appends to the secret."""

from __future__ import annotations

from typing import Any

KIND = "write outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    with open(t["secret"], "a") as file:
        return file.write("x")
