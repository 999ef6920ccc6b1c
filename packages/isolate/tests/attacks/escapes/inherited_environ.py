"""Looks for the host's variables in its own."""

from __future__ import annotations

import os
from typing import Any

KIND = "host's environment variables"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    with open("/proc/self/environ", "rb") as file:
        own = file.read()
    return b"ATTACK_SECRET" in own or "ATTACK_SECRET" in os.environ
