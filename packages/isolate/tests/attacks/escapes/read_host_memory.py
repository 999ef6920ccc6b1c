"""Reads the host's memory."""

from __future__ import annotations

import ctypes
from typing import Any

KIND = "host's memory"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    buffer = ctypes.create_string_buffer(6)
    local = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 6)
    remote = (ctypes.c_size_t * 2)(t["address"], 6)
    return ctypes.CDLL(None).process_vm_readv(t["pid"], local, 1, remote, 1, 0) == 6 and buffer.raw == b"canary"
