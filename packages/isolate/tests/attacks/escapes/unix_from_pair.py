"""Sends to a path from one end of a socket pair, which needs no new socket."""

from __future__ import annotations

import socket
from typing import Any

KIND = "Unix socket by path"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    one, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    return one.sendto(b"x", t["datagram"])
