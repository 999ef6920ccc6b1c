"""Starts an interpreter without any of this package's code."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

KIND = "read outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    code = f"print(open({t['secret']!r}).read())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
