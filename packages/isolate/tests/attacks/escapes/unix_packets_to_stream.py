"""Reaches services of other kinds from a packet socket: by connecting to them, and by sending to them."""

from __future__ import annotations

import socket
from typing import Any

KIND = "Unix socket by path"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    reached = []
    for name in ("unix", "datagram"):
        for reach in ("connect", "sendto"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as made:
                try:
                    made.connect(t[name]) if reach == "connect" else made.sendto(b"x", t[name])
                    reached.append(f"{reach} {name}")
                except OSError:
                    continue
    one, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        one.connect(t["packets"])
        reached.append("connect a pair's end")
    except OSError:
        pass
    return reached
