"""Announces four gigabytes."""

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

    def attack(self, seconds: float) -> int:
        """Do it."""
        os.write(self.fd, struct.pack("<IBQ", 2**32 - 1, 4, 1))
        return 1
