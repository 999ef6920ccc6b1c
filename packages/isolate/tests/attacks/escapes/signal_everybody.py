"""Counts the processes outside its own that signal 0 reaches."""

from __future__ import annotations

import os
from typing import Any

KIND = "signal the host"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    reached = []
    for pid in range(1, 5000):
        try:
            os.kill(pid, 0)
            reached.append(pid)
        except OSError:
            continue
    return reached if t["pid"] in reached and (os.readlink("/proc/self/ns/pid") == t["pid_namespace"]) else None
