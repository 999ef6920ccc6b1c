"""The versions of an extension's source files, to notice that one has changed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

Versions = dict[str, tuple[int, int]]
_SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages"})
_LIMIT = 10_000
"""Files that are looked at; an extension has fewer, unless its folder holds something else."""


def versions(folder: Path) -> Versions:
    """Return time of change and size of each Python file below a folder, hidden folders left out."""
    found: Versions = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED and not name.startswith(".")]
        for name in names:
            if name.endswith(".py") and len(found) < _LIMIT:
                path = os.path.join(place, name)
                with contextlib.suppress(OSError):
                    status = os.stat(path)
                    found[path] = (status.st_mtime_ns, status.st_size)
    return found
