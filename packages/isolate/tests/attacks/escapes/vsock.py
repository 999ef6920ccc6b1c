"""Makes a socket to the virtual machine's host."""

from __future__ import annotations

import socket
from typing import Any

KIND = "TCP"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    socket.socket(40, socket.SOCK_STREAM).close()
    return True
