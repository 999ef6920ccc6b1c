"""Finds the shared memory that living processes of this user hold."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from xfer._shared import names


@dataclass(frozen=True, slots=True)
class Held:
    """One segment: the process that holds it, its name, and the bytes of memory that it takes."""

    pid: int
    command: str
    segment: str
    nbytes: int
    alive: bool


def held_segments() -> list[Held]:
    """Return every segment of xfer that this user's processes hold, producers and readers, and named leftovers."""
    found = [
        Held(pid, _command(pid), path, _file_size(path), alive)
        for pid, path, alive in names.listing()
        if path.endswith(".seg")
    ]
    if sys.platform != "linux":
        return found
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            found += _of_process(int(entry))
    return sorted(found, key=lambda held: (held.pid, held.segment))


def _of_process(pid: int) -> list[Held]:
    found: dict[int, Held] = {}
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{fd}"
            target = os.readlink(path)
            if target.startswith("/memfd:xfer:"):
                status = os.stat(path)
                name = f"memory of process {target.split(':')[2].split(' ')[0]}, number {status.st_ino}"
                found[status.st_ino] = Held(pid, _command(pid), name, status.st_blocks * 512, True)
    except OSError:
        return list(found.values())  # another user's process, or one that has ended
    return list(found.values())


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace").strip()[:60]
    except OSError:
        return ""


def _file_size(path: str) -> int:
    try:
        return os.lstat(path).st_blocks * 512
    except OSError:
        return 0
