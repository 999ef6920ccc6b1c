"""Sends to an abstract name from one end of a socket pair."""

from __future__ import annotations

import socket
from typing import Any

KIND = "Unix socket by abstract name"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    one, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    return one.sendto(b"x", "\0" + t["abstract_datagram"])
