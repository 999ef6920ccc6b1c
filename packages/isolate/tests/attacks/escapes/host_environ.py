"""Reads the host's variables."""

from __future__ import annotations

from typing import Any

KIND = "host's environment variables"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    with open(f"/proc/{t['pid']}/environ", "rb") as file:
        return b"ATTACK_SECRET" in file.read()
