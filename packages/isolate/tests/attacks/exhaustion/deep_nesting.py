"""Sends a value nested a million levels deep."""

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
        self.send(4, 1 << 41, call(b"\x91" * 1_000_000 + b"\xc0"))
        return 1


def msgpack(value: Any) -> bytes:
    """Encode a value."""
    wire = sys.modules["isolate_worker.wire"]
    encoded: bytes = wire.pack(value, lambda part: None)
    return encoded


def call(argument: bytes) -> bytes:
    """Encode a call of the host's `store.keep`."""
    return b"\x95" + msgpack("store.keep") + b"\x91" + argument + b"\x80\xc0\x01"
