"""Reads the host's command line."""

from __future__ import annotations

from typing import Any

KIND = "host's environment variables"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    with open(f"/proc/{t['pid']}/cmdline", "rb") as file:
        return b"run_attacks" in file.read()
