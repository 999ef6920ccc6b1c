"""Sends descriptors that no message announces."""

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
        self.fd = int(sys.argv[1])
        self.socket = socket.socket(fileno=os.dup(self.fd))

    def raw(self, data: bytes) -> None:
        """Write to the host, past the worker's own code."""
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self.fd, left) :]
            except BlockingIOError:
                time.sleep(0.001)

    def send(self, kind: int, number: int, payload: bytes) -> None:
        """Send a frame."""
        self.raw(struct.pack("<IBQ", len(payload), kind, number) + payload)

    def attack(self, seconds: float) -> int:
        """Do it."""
        end, files = time.monotonic() + seconds, [self.fd] * 200
        while time.monotonic() < end:
            try:
                socket.send_fds(self.socket, [struct.pack("<IBQ", 1, 17, 0) + b"\xc0"], files)
            except BlockingIOError:
                time.sleep(0.001)
        return 1
