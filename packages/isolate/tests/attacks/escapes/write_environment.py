"""Adds a file to its environment, which other extensions share."""

from __future__ import annotations

import os
import sys
from typing import Any

KIND = "write outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    import site

    path = os.path.join(sys.prefix, "attack.pth")
    with open(path, "w") as file:
        file.write("import os")
    os.unlink(path)
    return site
