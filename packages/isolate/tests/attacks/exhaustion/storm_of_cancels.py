"""Begins calls of the host and gives them up at once."""

from __future__ import annotations

import os
import struct
import sys
import time
from typing import Any


class Extension:
    """The attacker."""

    def __init__(self, host: Any) -> None:
        self.host = host
        self.fd = int(sys.argv[1])

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
        end, number = time.monotonic() + seconds, 1 << 41
        payload = msgpack(["store.sleep", [0.5], {}, None, 1])
        while time.monotonic() < end:
            storm = b""
            for _ in range(500):
                number += 1
                storm += struct.pack("<IBQ", len(payload), 4, number) + payload
                storm += struct.pack("<IBQ", 1, 7, number) + b"\xc0"
            self.raw(storm)
        return 1


def msgpack(value: Any) -> bytes:
    """Encode a value."""
    wire = sys.modules["isolate_worker.wire"]
    encoded: bytes = wire.pack(value, lambda part: None)
    return encoded
