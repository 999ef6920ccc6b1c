"""Makes the secret readable for everybody."""

from __future__ import annotations

import os
from typing import Any

KIND = "change modes outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    os.chmod(t["secret"], 0o666)
    return True
