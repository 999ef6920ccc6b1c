"""Sends in the first packet, which connects without connect()."""

from __future__ import annotations

import socket
from typing import Any

KIND = "TCP"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
        return made.sendto(b"x", 0x20000000, ("127.0.0.1", t["tcp"]))
