"""How much memory this process may use: that of the machine, or of its container where that is less."""

from __future__ import annotations

import contextlib
import functools
import os


@functools.cache
def memory_limit(groups: str = "/proc/self/cgroup", mount: str = "/sys/fs/cgroup") -> int:
    """Return the bytes that the machine has, or that the least of this process's control groups allows.

    Args:
        groups: The file that lists the groups of this process.
        mount: The folder where they are.
    """
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError), open(groups) as file:  # a confined worker sees none
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            if not controllers:
                found = min([found, *_limits(mount, path, "memory.max")])
            elif "memory" in controllers.split(","):
                found = min([found, *_limits(f"{mount}/memory", path, "memory.limit_in_bytes")])
    return found


def _limits(mount: str, path: str, name: str) -> list[int]:
    """Return the limits of a group and of those above it; in a container the path may be the one outside."""
    found = []
    while True:
        with contextlib.suppress(OSError, ValueError), open(f"{mount}{path}/{name}") as file:
            found.append(int(file.read()))  # a group without a limit says "max"
        if path in ("", "/"):
            return found
        path = path.rpartition("/")[0]
