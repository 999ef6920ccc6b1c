"""Logs records of ever new names, with deep and wide contents."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

PREFIX = sys.modules["isolate_worker.logs"].PREFIX


class Extension:
    """The attacker."""

    def __init__(self, host: Any) -> None:
        self.host = host

    def attack(self, seconds: float) -> int:
        """Do it."""
        end, number = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            number += 1
            sys.stderr.write(f"{PREFIX}{json.dumps([40, f'name{number}.' * 20, 'text', 'module', 1])}\n")
            sys.stderr.write(f"{PREFIX}{'[' * 5000}\n{PREFIX}[40, {'9' * 5000}, 1, 1, 1]\n")
        return number
