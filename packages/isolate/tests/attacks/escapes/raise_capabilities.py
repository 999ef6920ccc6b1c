"""Asks the kernel for every capability, in every set."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

KIND = "capabilities"


def attack(t: dict[str, Any]) -> Any:
    """Return evidence, if it worked."""
    libc = ctypes.CDLL(None, use_errno=True)
    everything = struct.pack("=6I", *[0xFFFFFFFF] * 6)
    libc.prctl(28, 0, 0, 0, 0)  # no secure bits
    libc.prctl(8, 1, 0, 0, 0)  # keep them when the user changes
    libc.capset(struct.pack("=Ii", 0x20080522, 0), everything)
    for number in range(41):
        libc.prctl(47, 2, number, 0, 0)  # as ambient ones
    with open("/proc/self/status") as file:
        return [line for line in file if line.startswith(("CapEff", "CapAmb", "CapPrm")) and int(line.split()[1], 16)]
