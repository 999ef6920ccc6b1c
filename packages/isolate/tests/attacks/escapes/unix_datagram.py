"""Sends to a datagram socket in the file system."""

from __future__ import annotations

import socket
from typing import Any

KIND = "Unix socket by path"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.sendto(b"x", t["datagram"])
    return True
