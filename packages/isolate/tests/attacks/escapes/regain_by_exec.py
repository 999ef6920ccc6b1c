"""Looks whether a program that it starts has capabilities."""

from __future__ import annotations

import subprocess
from typing import Any

KIND = "new privileges"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    out = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
    return [line for line in out.splitlines() if line.startswith("CapEff") and int(line.split()[1], 16)]
