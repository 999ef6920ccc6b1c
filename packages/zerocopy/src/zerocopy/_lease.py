"""Leases on segment files: shared locks that the kernel drops when their holder ends.

A lease is a shared flock on the file. The kernel drops it when the last descriptor of its holder closes, however the
holder ends, so a killed process gives its leases back too.

A forked child inherits descriptors and with them leases. It keeps those of the models that it inherits, and closes all
others, which belong to publishers of the parent process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zerocopy._caretaker_process import TEMPORARY
from zerocopy.errors import NoSpaceError, SegmentGoneError, ZerocopyError

try:
    import fcntl
except ImportError:  # Windows has no flock
    fcntl = None  # type: ignore[assignment]

__all__ = ["TEMPORARY", "close", "create", "exclusive", "gate", "inherit", "opened", "require_leases", "share"]

_guard = threading.RLock()  # held across a fork, so that no descriptor is open and not yet listed
_not_inherited: set[int] = set()  # descriptors that a forked child closes


def _close_in_child() -> None:
    for fd in _not_inherited:
        os.close(fd)
    _not_inherited.clear()
    _guard.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_close_in_child)


def opened(path: Path, flags: int, mode: int = 0o600) -> int:
    """Open a file whose descriptor a forked child closes, unless `inherit` is called for it.

    Raises:
        ZerocopyError: The process may not open more files.
    """
    with _guard:
        try:
            fd = os.open(path, flags | os.O_CLOEXEC, mode)
        except OSError as error:
            if error.errno in (23, 24):  # ENFILE, EMFILE
                raise NoSpaceError(
                    error.errno, f"cannot open {path}: {error.strerror}; raise the limit of open files (ulimit -n)"
                ) from error
            raise
        _not_inherited.add(fd)
    return fd


def inherit(fd: int) -> None:
    """Let forked children keep a descriptor: it belongs to a model that they inherit too."""
    with _guard:
        _not_inherited.discard(fd)


def close(fd: int) -> None:
    """Close a descriptor that `opened` returned."""
    with _guard:
        _not_inherited.discard(fd)
        os.close(fd)


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
        fd = opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        fcntl.flock(fd, fcntl.LOCK_SH)
        if os.fstat(fd).st_nlink:
            return fd
        close(fd)  # a sweep found it before the lease and took it for a killed process's


@contextmanager
def gate(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a machine-wide mutex during the block. It is a lock file that its last holder removes.

    Args:
        path: The lock file.
        wait: Wait until the mutex is free.

    Yields:
        Whether this process holds it; always true with `wait`.
    """
    while True:
        fd = opened(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            close(fd)
            yield False
            return
        if os.fstat(fd).st_nlink:
            break
        close(fd)  # the previous holder removed it: lock the new file
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        fcntl.flock(fd, fcntl.LOCK_UN)  # a process forked meanwhile may not have closed it yet
        close(fd)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, among all processes of the machine, during the block."""
    fd = opened(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)  # as in `gate`
        close(fd)
