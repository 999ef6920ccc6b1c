"""Reads the resource limits of the host."""

from __future__ import annotations

import os
from typing import Any

KIND = "signal the host"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    import resource

    shared = os.readlink("/proc/self/ns/pid") == t["pid_namespace"]
    return shared and resource.prlimit(t["pid"], resource.RLIMIT_NOFILE)
