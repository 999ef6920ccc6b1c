"""Looks for capabilities that it has."""

from __future__ import annotations

from typing import Any

KIND = "capabilities"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    with open("/proc/self/status") as file:
        return [line for line in file if line.startswith(("CapEff", "CapPrm", "CapBnd")) and int(line.split()[1], 16)]
