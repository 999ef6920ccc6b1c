"""Prints lines of fifty megabytes."""

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
        line = b"x" * (50 << 20) + b"\n"
        while time.monotonic() < self.end(seconds):
            left = memoryview(line)
            while left and time.monotonic() < self.end(seconds):
                left = left[os.write(2, left[:65536]) :]
        return 1
