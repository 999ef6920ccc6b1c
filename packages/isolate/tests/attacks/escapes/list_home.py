"""Lists the home folder of the host's user."""

from __future__ import annotations

import os
from typing import Any

KIND = "read outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    return [name for name in os.listdir(t["home"]) if name == os.path.basename(t["in_home"])]
