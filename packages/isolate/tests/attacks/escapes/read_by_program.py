"""Has a program read it."""

from __future__ import annotations

import subprocess
from typing import Any

KIND = "read outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    return subprocess.run(["cat", t["secret"]], capture_output=True, check=True).stdout
