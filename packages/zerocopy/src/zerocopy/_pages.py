"""Which pages of a mapping a process has written. Without torch, so that the command line starts at once."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_PRESENT = np.uint64(1 << 63)
_SWAPPED = np.uint64(1 << 62)
_FILE_PAGE = np.uint64(1 << 61)

Pages = np.ndarray[Any, np.dtype[np.bool_]]


def private_pages(pid: int | str, start: int, nbytes: int) -> Pages | None:
    """Return which pages of an address range are private to a process.

    Args:
        pid: Process id, or "self".
        start: Page-aligned address.
        nbytes: Length of the range.

    Returns:
        One bool per page, or None where the system has no readable pagemap (Linux has).
    """
    count = -(-nbytes // PAGE)
    try:
        with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
            file.seek(start // PAGE * 8)
            data = file.read(count * 8)
    except OSError:
        return None
    entries = np.frombuffer(data, dtype=np.uint64)
    if len(entries) < count:
        return None
    present = (entries & (_PRESENT | _SWAPPED)) != 0
    own: Pages = present & ((entries & _FILE_PAGE) == 0)
    return own
