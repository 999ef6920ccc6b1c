"""Sets an extended attribute of the secret."""

from __future__ import annotations

import os
from typing import Any

KIND = "change modes outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    os.setxattr(t["secret"], "user.attack", b"x")
    return True
