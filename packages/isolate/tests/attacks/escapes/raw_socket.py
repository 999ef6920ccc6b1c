"""Makes a raw socket."""

from __future__ import annotations

import socket
from typing import Any

KIND = "TCP"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close()
    return True
