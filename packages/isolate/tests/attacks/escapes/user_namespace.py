"""Makes a user namespace, in which it would be root."""

from __future__ import annotations

import ctypes
import os
from typing import Any

KIND = "user namespaces"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    child = os.fork()
    if not child:
        os._exit(0 if ctypes.CDLL(None).unshare(0x10000000) == 0 else 1)
    return os.waitpid(child, 0)[1] == 0
