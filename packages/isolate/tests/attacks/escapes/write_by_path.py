"""Writes a file beside the secret."""

from __future__ import annotations

from typing import Any

KIND = "write outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    path = t["secret"] + ".new"
    with open(path, "w") as file:
        file.write("x")
    return path
