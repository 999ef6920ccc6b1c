"""Sends a datagram."""

from __future__ import annotations

import socket
from typing import Any

KIND = "UDP"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        return made.sendto(b"x", ("127.0.0.1", t["udp"]))
