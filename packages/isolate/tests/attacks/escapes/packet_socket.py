"""Makes a socket that sees every packet."""

from __future__ import annotations

import socket
from typing import Any

KIND = "TCP"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    socket.socket(17, socket.SOCK_RAW, 3).close()
    return True
