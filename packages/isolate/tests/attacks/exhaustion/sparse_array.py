"""Sends an array in two gigabytes of memory that was never written."""

from __future__ import annotations

import fcntl
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
        fd = os.memfd_create("attack", os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, 2 << 30)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0x16)
        socket.send_fds(self.socket, [struct.pack("<IBQ", 0, 12, 77777)], [fd])
        body = msgpack(["numpy", [77777, 0, 1, False], "|u1", [2 << 30]])
        self.send(4, 1 << 41, call(b"\xc8" + len(body).to_bytes(2, "big") + b"\x08" + body))
        return 1


def msgpack(value: Any) -> bytes:
    """Encode a value."""
    wire = sys.modules["isolate_worker.wire"]
    encoded: bytes = wire.pack(value, lambda part: None)
    return encoded


def call(argument: bytes) -> bytes:
    """Encode a call of the host's `store.keep`."""
    return b"\x95" + msgpack("store.keep") + b"\x91" + argument + b"\x80\xc0\x01"
