"""Leases on segment files: shared locks that the kernel drops when their holder ends.

A lease is a shared flock on the file. The kernel drops it when the last descriptor of its holder closes, however the
holder ends, so a killed process gives its leases back too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zerocopy.errors import SegmentGoneError, ZerocopyError

try:
    import fcntl
except ImportError:  # Windows has no flock
    fcntl = None  # type: ignore[assignment]

TEMPORARY = ".part"


def require_leases() -> None:
    """Refuse to publish where leases cannot work.

    Raises:
        ZerocopyError: The operating system has no flock.
    """
    if fcntl is None:
        raise ZerocopyError("segment files need flock, which this operating system lacks; use Linux or macOS")


def share(fd: int, path: Path) -> None:
    """Take a lease on an open segment.

    Raises:
        SegmentGoneError: The file is being removed, or was removed after it was opened.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        raise SegmentGoneError(f"{path} is being removed: its publisher and every reader have left") from error
    if os.fstat(fd).st_nlink == 0:
        raise SegmentGoneError(f"{path} was removed: its publisher and every reader have left; publish the model again")


def create(path: Path) -> int:
    """Make a file, take a lease on it and return the descriptor."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_SH)
        if os.fstat(fd).st_nlink:
            return fd
        os.close(fd)  # a sweep found it before the lease and took it for a killed process's


def remove_if_free(path: Path) -> bool:
    """Remove a file that has no lease, and return whether it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink:  # else another file is at the path now
            path.unlink(missing_ok=True)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


@contextmanager
def gate(path: Path) -> Iterator[None]:
    """Hold a machine-wide mutex during the block. It is a lock file that its last holder removes."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            break
        os.close(fd)  # the previous holder removed it: lock the new file
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        fcntl.flock(fd, fcntl.LOCK_UN)  # closing is not enough: a process forked meanwhile has the descriptor too
        os.close(fd)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, among all processes of the machine, during the block."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)  # as in `gate`
        os.close(fd)
