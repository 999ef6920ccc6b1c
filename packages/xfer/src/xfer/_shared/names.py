"""Named segments, for systems without nameless memory or with a closed /proc.

Every file of a process starts with `xfer-UID-PID-`. Its `.alive` file is locked for as long as the process lives, so
any process can find a dead owner's files and remove them; each new owner does that first.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sys
from collections.abc import Iterator

from xfer._shared.lease import fcntl
from xfer.errors import ProducerGoneError

DIRECTORY = "/dev/shm" if sys.platform == "linux" else "/tmp"
_PATTERN = re.compile(r"xfer-(\d+)-(\d+)-([0-9a-f]+)\.(alive|seg)")


def room() -> int:
    """Return how many bytes of shared memory the system has left, or 0 where it does not report them."""
    try:
        space = os.statvfs(DIRECTORY)
    except OSError:
        return 0
    return space.f_bavail * space.f_frsize


class Owner:
    """A process that owns named segments; it holds a lock for as long as it lives."""

    def __init__(self) -> None:
        reap()
        self.name = f"xfer-{os.getuid()}-{os.getpid()}-"
        while True:
            self.path = f"{DIRECTORY}/{self.name}{secrets.token_hex(8)}.alive"
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self.fd, fcntl.LOCK_EX)
            if os.fstat(self.fd).st_nlink:
                break
            os.close(self.fd)  # another process's `reap` removed it before it was locked

    def close(self) -> None:
        """Remove the lock file; the segments must be removed before."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        os.close(self.fd)


def segment_path(owner: str, segment: int) -> str:
    """Return the path of an owner's segment."""
    return f"{DIRECTORY}/{owner}{segment:016x}.seg"


def open_segment(pid: int, segment: int) -> tuple[int, str]:
    """Open a segment of a live or dead process for reading; return the descriptor and its owner's prefix.

    Raises:
        ProducerGoneError: There is no such segment.
    """
    owner = f"xfer-{os.getuid()}-{pid}-"
    path = segment_path(owner, segment)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError as error:
        raise ProducerGoneError(f"{path} is gone: process {pid} has exited or freed the segment") from error
    return fd, owner


def is_locked(owner: str) -> bool:
    """Return whether a lock file with this prefix is held."""
    return any(_held(entry) for entry in os.listdir(DIRECTORY) if entry.startswith(owner) and entry.endswith(".alive"))


def listing() -> list[tuple[int, str, bool]]:
    """Return (process id, path, owner lives) for every named file of this user."""
    mine = [match for entry in sorted(os.listdir(DIRECTORY)) if (match := _PATTERN.fullmatch(entry))]
    mine = [match for match in mine if int(match[1]) == os.getuid()]
    living = {match[2] for match in mine if match[4] == "alive" and _held(match[0])}
    return [(int(match[2]), f"{DIRECTORY}/{match[0]}", match[2] in living) for match in mine]


def reap() -> list[str]:
    """Remove the files of dead processes of this user; return the paths."""
    removed = []
    for _, path, alive in listing():
        if not alive:
            with contextlib.suppress(FileNotFoundError, BlockingIOError), _unlocked(path):
                os.unlink(path)
                removed.append(path)
    return removed


@contextlib.contextmanager
def _unlocked(path: str) -> Iterator[None]:
    """Hold a file's lock for a block, so that a process that has just made the file notices; raise if held."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def _held(entry: str) -> bool:
    try:
        fd = os.open(f"{DIRECTORY}/{entry}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
