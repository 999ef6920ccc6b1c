"""Has the host hold callables without end."""

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

    def end(self, seconds: float) -> float:
        """When to stop."""
        return self.began + seconds

    async def attack(self, seconds: float) -> int:
        """Do it."""
        done = 0
        while time.monotonic() < self.end(seconds):
            await self.host.aio.store.keep([lambda: None for _ in range(500)])
            done += 500
        return done
