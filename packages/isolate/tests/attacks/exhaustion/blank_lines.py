"""Prints nothing but ends of lines."""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import Any


class Extension:
    """The attacker."""

    def __init__(self, host: Any) -> None:
        self.host = host
        self.began = time.monotonic()
        self.fd = int(sys.argv[1])
        self.socket = socket.socket(fileno=os.dup(self.fd))

    def end(self, seconds: float) -> float:
        """When to stop."""
        return self.began + seconds

    def attack(self, seconds: float) -> int:
        """Do it."""
        while time.monotonic() < self.end(seconds):
            os.write(1, b"\n" * 65536)
        return 1
