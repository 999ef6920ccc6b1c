"""Looks at the size of the secret."""

from __future__ import annotations

import os
from typing import Any

KIND = "see files outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    return os.stat(t["secret"]).st_size
