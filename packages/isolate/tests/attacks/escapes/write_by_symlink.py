"""Writes through a link in a folder of its own."""

from __future__ import annotations

import os
import tempfile
from typing import Any

KIND = "write outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    link = os.path.join(tempfile.mkdtemp(), "link")
    os.symlink(t["secret"] + ".linked", link)
    with open(link, "w") as file:
        file.write("x")
    return True
