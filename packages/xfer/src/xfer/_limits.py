"""How much memory this process may use: the machine's, its control groups' and its own limit."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

_UNLIMITED = 1 << 60


class Limit(NamedTuple):
    """The smallest limit that was found, in bytes, and where."""

    nbytes: int
    source: str


def memory_limit(groups: str = "/proc/self/cgroup", mount: str = "/sys/fs/cgroup") -> Limit | None:
    """Return the smallest of the memory limits that hold for this process, or None where the system reports none.

    Args:
        groups: The file that names this process's control groups.
        mount: Where control groups are mounted.
    """
    found = [*_physical(), *_group_limits(Path(groups), Path(mount)), *_own()]
    return min(found, default=None)


def _physical() -> list[Limit]:
    if not hasattr(os, "sysconf"):
        return []
    return [Limit(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "the machine's memory")]


def _own() -> list[Limit]:
    try:
        import resource
    except ImportError:
        return []
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return [Limit(soft, "RLIMIT_AS")] if 0 <= soft < _UNLIMITED else []


def _group_limits(groups: Path, mount: Path) -> list[Limit]:
    if sys.platform != "linux":
        return []
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            root, name = mount, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = mount / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = root / path.lstrip("/")
        # In a container the path may name a folder outside of what is mounted; then the root is the container's own.
        for place in (*([folder, *folder.parents] if folder.is_relative_to(root) else []), root):
            found += _read(place / name)
            if place == root:
                break
    return found


def _read(file: Path) -> list[Limit]:
    try:
        text = file.read_text().strip()
    except OSError:
        return []
    return [Limit(int(text), str(file))] if text.isdigit() and int(text) < _UNLIMITED else []
