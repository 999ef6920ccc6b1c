"""Makes the secret's folder its working folder and lists it."""

from __future__ import annotations

import os
from typing import Any

KIND = "read outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    os.chdir(os.path.dirname(t["secret"]))
    return os.listdir(".")
