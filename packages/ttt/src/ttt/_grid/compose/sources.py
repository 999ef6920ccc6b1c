"""A digest of the sources of the compiled core, which is compiled into it; `hatch_build.py` runs this file as well."""

from __future__ import annotations

from pathlib import Path
from zlib import crc32


def digest(folder: Path) -> str:
    """Return a digest of the C sources in a folder, or "" where there are none.

    Args:
        folder: The sources of the core.
    """
    files = sorted(folder.glob("*.[ch]"))
    whole = b"".join(file.name.encode() + b"\0" + file.read_bytes() + b"\0" for file in files)
    return f"{crc32(whole):08x}-{len(whole)}" if files else ""
