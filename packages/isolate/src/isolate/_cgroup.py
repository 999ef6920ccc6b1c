"""Control groups (version 2) for workers, where the host may make them: one write ends all processes of a worker."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
from pathlib import Path


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
    return None if mount is None or path is None else Path(mount + path)


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
        path = own / f"isolate-{os.getpid()}-{secrets.token_hex(4)}"
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
