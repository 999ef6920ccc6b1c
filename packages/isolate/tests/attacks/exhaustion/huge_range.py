"""Sends a range whose length is the quotient of two numbers of a megabyte."""

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
        top, step = 1 << (8 << 20), (1 << (4 << 20)) + 1
        payload = call(extension(12, msgpack(["range", [0, top, step]])))
        for number in range(4):
            self.send(4, 1 << 41 | number, payload)
        return 4


def msgpack(value: Any) -> bytes:
    """Encode a value."""
    wire = sys.modules["isolate_worker.wire"]
    encoded: bytes = wire.pack(value, lambda part: None)
    return encoded


def call(argument: bytes) -> bytes:
    """Encode a call of the host's `store.keep`."""
    return b"\x95" + msgpack("store.keep") + b"\x91" + argument + b"\x80\xc0\x01"


def extension(code: int, payload: bytes) -> bytes:
    """Encode an extension type."""
    return b"\xc9" + len(payload).to_bytes(4, "big") + bytes([code]) + payload
