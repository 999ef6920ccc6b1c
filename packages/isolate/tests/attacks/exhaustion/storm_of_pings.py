"""Asks for answers that it does not read."""

from __future__ import annotations

import os
import socket
import struct
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

    def raw(self, data: bytes) -> None:
        """Write to the host, past the worker's own code."""
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self.fd, left) :]
            except BlockingIOError:
                time.sleep(0.001)

    def attack(self, seconds: float) -> int:
        """Do it."""
        storm = struct.pack("<IBQ", 1, 16, 0) + b"\xc0"
        while time.monotonic() < self.end(seconds):
            self.raw(storm * 4000)
        return 1
