"""Control groups (version 2) for workers, where the host may make them: one write ends all processes of a worker."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import time
from pathlib import Path

_PREFIX = "isolate-"
_NEW = 60.0
"""Seconds within which a host has put its worker into a group that it made."""


@functools.cache
def _own() -> Path | None:
    """Return the folder of this process's own group; None without cgroup v2."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    mount = next((line.split()[4] for line in mounts if " - cgroup2 " in line), None)
    path = next((line[3:] for line in groups if line.startswith("0::")), None)
    if mount is None or path is None:
        return None
    own = Path(mount + path)
    _sweep(own)
    return own


def _sweep(own: Path) -> None:
    """Remove the empty groups that hosts which were killed have left below this process's group."""
    for path in own.glob(f"{_PREFIX}*"):
        host = path.name.removeprefix(_PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):  # a group with processes stays
            # One that is new may belong to a host that another process-id namespace hides.
            if not os.path.exists(f"/proc/{host}") and time.time() - path.stat().st_ctime > _NEW:
                path.rmdir()


class Group:
    """The group of one worker.

    Attributes:
        path: Its folder; None where the host may not make one.
        memory: Whether the kernel limits the memory of all its processes together.
    """

    def __init__(self, memory: int | None) -> None:
        self.path: Path | None = None
        self.memory = False
        own = _own()
        if own is None:
            return
        path = own / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        try:
            path.mkdir()
        except OSError:
            return
        self.path = path
        if memory is not None:
            with contextlib.suppress(OSError):
                (path / "memory.max").write_text(str(memory))
                self.memory = True

    def add(self, pid: int) -> None:
        """Put a process into the group, before it has children."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                (self.path / "cgroup.procs").write_text(str(pid))

    def kill(self) -> None:
        """End all its processes at once (Linux 5.14 and later)."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                (self.path / "cgroup.kill").write_text("1")

    def remove(self) -> bool:
        """Remove the empty group; return whether it is gone."""
        if self.path is not None:
            try:
                self.path.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                return False
            self.path = None
        return True
