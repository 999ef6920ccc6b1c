"""Connects to an abstract packet socket."""

from __future__ import annotations

import socket
from typing import Any

KIND = "Unix socket by abstract name"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as made:
        made.connect("\0" + t["abstract_packets"])
    return True
