"""Changes the standard library."""

from __future__ import annotations

import os
from typing import Any

KIND = "write outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    with open(os.__file__, "a") as file:
        return file.write("") or True
