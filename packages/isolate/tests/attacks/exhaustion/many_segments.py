"""Announces thousands of memory files, a descriptor each."""

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

    def attack(self, seconds: float) -> int:
        """Do it."""
        for number in range(5000):
            fd = os.memfd_create("attack", os.MFD_ALLOW_SEALING)
            os.ftruncate(fd, 4096)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0x16)
            socket.send_fds(self.socket, [struct.pack("<IBQ", 0, 12, 100_000 + number)], [fd])
            os.close(fd)
        return 5000
