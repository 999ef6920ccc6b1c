"""Changes its root folder."""

from __future__ import annotations

import os
from typing import Any

KIND = "mount"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    os.chroot(os.path.dirname(__file__))
    return True
