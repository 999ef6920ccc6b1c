"""Starts processes that outlive their parents."""

from __future__ import annotations

import os
import socket
import subprocess
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
        for _ in range(50):
            subprocess.Popen(["sh", "-c", "sleep 1000 & sleep 1000"], env={}, start_new_session=True)
        return 50
