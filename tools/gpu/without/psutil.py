"""The part of psutil that the tests' leak checks use, from /proc, for machines without psutil."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

STATUS_ZOMBIE = "zombie"


class Error(Exception):
    """The process cannot be looked at."""


class NoSuchProcess(Error):  # noqa: N818 - psutil's name
    """There is no such process."""


@dataclass(frozen=True)
class OpenFile:
    """A file that a process has open."""

    path: str


class Process:
    """A process.

    Args:
        pid: Its number; this process by default.
    """

    def __init__(self, pid: int | None = None) -> None:
        self.pid = os.getpid() if pid is None else pid

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Process) and other.pid == self.pid

    def __hash__(self) -> int:
        return self.pid

    def __repr__(self) -> str:
        return f"Process({self.pid})"

    def _read(self, name: str) -> str:
        try:
            return Path(f"/proc/{self.pid}/{name}").read_text()
        except OSError as error:
            raise NoSuchProcess(f"process {self.pid} is gone") from error

    def children(self, recursive: bool = False) -> list[Process]:
        """Return its children, and theirs."""
        found = []
        for task in Path(f"/proc/{self.pid}/task").glob("*/children"):
            try:
                found += [Process(int(pid)) for pid in task.read_text().split()]
            except OSError:
                continue
        return found + [deep for child in found if recursive for deep in child.children(True)]

    def cmdline(self) -> list[str]:
        """Return its command and arguments."""
        return self._read("cmdline").rstrip("\0").split("\0")

    def num_fds(self) -> int:
        """Return how many descriptors it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def open_files(self) -> list[OpenFile]:
        """Return the regular files that it has open."""
        return [OpenFile(target) for target in self._descriptors() if os.path.isfile(target)]

    def _descriptors(self) -> list[str]:
        found = []
        folder = f"/proc/{self.pid}/fd"
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):  # the one that lists the folder is closed again
                found.append(os.readlink(f"{folder}/{name}"))
        return found

    def status(self) -> str:
        """Return "zombie" or "running"."""
        return STATUS_ZOMBIE if self._read("stat").rpartition(")")[2].split()[0] == "Z" else "running"

    def is_running(self) -> bool:
        """Return whether it is there."""
        return Path(f"/proc/{self.pid}").exists()


def wait_procs(processes: list[Process], timeout: float = 0.0) -> tuple[list[Process], list[Process]]:
    """Wait for processes; return those that ended and those that live."""
    deadline = time.monotonic() + timeout
    while any(process.is_running() for process in processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    return [p for p in processes if not p.is_running()], [p for p in processes if p.is_running()]
