"""A digest of the sources of the compiled core, which is compiled into it; `hatch_build.py` runs this file as well."""

from __future__ import annotations

from pathlib import Path
from zlib import crc32


def digest(package: Path) -> str:
    """Return a digest of all C sources of the package, or "" where they are not installed.

    Args:
        package: The folder of the Python package.
    """
    files = sorted(package.glob("*/csrc/*.[ch]"))
    whole = b"".join(f"{file.parent.parent.name}/{file.name}\0".encode() + file.read_bytes() + b"\0" for file in files)
    return f"{crc32(whole):08x}-{len(whole)}" if files else ""
