"""Reads it through a symbolic link in a folder of its own."""

from __future__ import annotations

import os
import tempfile
from typing import Any

KIND = "read outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    link = os.path.join(tempfile.mkdtemp(), "link")
    os.symlink(t["secret"], link)
    return open(link).read()
