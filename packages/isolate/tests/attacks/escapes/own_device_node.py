"""Makes a node for a disk of its own and opens it."""

from __future__ import annotations

import os
import stat
import tempfile
from typing import Any

KIND = "raw devices"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    path = os.path.join(tempfile.mkdtemp(), "disk")
    os.mknod(path, 0o600 | stat.S_IFBLK, t["disk"])
    return os.open(path, os.O_RDONLY)
