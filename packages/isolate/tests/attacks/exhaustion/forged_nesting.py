"""Claims that its calls are nested, since nested calls do not wait for a thread."""

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
        for number in range(2000):
            self.send(4, 1 << 40 | number, msgpack(["store.sleep", [seconds / 2], {}, None, 9]))
        return 2000


def msgpack(value: Any) -> bytes:
    """Encode a value."""
    wire = sys.modules["isolate_worker.wire"]
    encoded: bytes = wire.pack(value, lambda part: None)
    return encoded
