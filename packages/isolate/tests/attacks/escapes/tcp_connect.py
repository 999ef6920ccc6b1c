"""Connects to a listener on the machine."""

from __future__ import annotations

import socket
from typing import Any

KIND = "TCP"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    socket.create_connection(("127.0.0.1", t["tcp"]), 1).close()
    return True
