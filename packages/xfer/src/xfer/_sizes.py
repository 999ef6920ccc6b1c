"""Sizes: words like "2GiB" to bytes, and which slot size serves a request; and back."""

from __future__ import annotations

import re

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
SMALL = 256 << 10
SLAB = 4 << 20
FIRST_SLAB = 64 << 10


def parse_size(size: float | str) -> int:
    """Return bytes.

    Args:
        size: A number of bytes such as `64 << 20` or `2e9`, or text such as "64MiB" or "2 GB".

    Raises:
        ValueError: The text is no size, or it is not positive.
    """
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d{1,30})(?:\.(\d{1,30}))?\s*([a-zA-Z]*)\s*", size)
        if match is None or match[3].upper() not in _UNITS:
            raise ValueError(f"got {size[:40]!r}, want a size such as '512MiB' or '2GB'")
        unit, part = _UNITS[match[3].upper()], match[2] or "0"
        size = int(match[1]) * unit + int(part) * unit // 10 ** len(part)  # a float would lose bytes
    try:
        nbytes = int(size)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"got {size!r}, want a size such as 2_000_000 or '512MiB'") from error
    if nbytes <= 0:
        raise ValueError(f"got {size} bytes, want a positive size")
    return nbytes


def format_size(size: int) -> str:
    """Return bytes as a short text with binary units."""
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"


def slot_size(nbytes: int) -> int:
    """Round a request up to a slot size: four sizes per doubling below 256 KiB, eight above (at most 12.5 % unused)."""
    nbytes = max(nbytes, 64)
    steps, least = (2, 64) if nbytes <= SMALL else (3, 4096)
    unit = max(least, 1 << max(nbytes.bit_length() - 1 - steps, 0))
    return -(-nbytes // unit) * unit
