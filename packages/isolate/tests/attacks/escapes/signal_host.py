"""Sends signal 0 to the host."""

from __future__ import annotations

import os
from typing import Any

KIND = "signal the host"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    os.kill(t["pid"], 0)
    return os.readlink("/proc/self/ns/pid") == t["pid_namespace"]
