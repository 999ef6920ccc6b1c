"""Connects to a packet socket in the file system, which is the kind that CUDA's library has to make."""

from __future__ import annotations

import socket
from typing import Any

KIND = "Unix packet socket by path"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as made:
        made.connect(t["packets"])
    return True
