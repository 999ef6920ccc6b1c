"""Raises an exception with fifty megabytes of text."""

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

    def attack(self, seconds: float) -> int:
        """Do it."""
        time.sleep(seconds / 2)
        raise ValueError("x" * (50 << 20))
