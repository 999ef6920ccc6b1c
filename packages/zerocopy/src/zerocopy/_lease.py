"""Leases on segment files: shared locks that the kernel drops when their holder ends.

A lease is a shared flock on the file. The kernel drops it when the last descriptor of its holder closes, however the
holder ends, so a killed process gives its leases back too.

A forked child inherits descriptors and with them leases. It keeps those of the models that it inherits, and closes all
others, which belong to publishers of the parent process.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from zerocopy import _window
from zerocopy._caretaker_process import PATIENCE, TEMPORARY, lock_within, open_trusted
from zerocopy.errors import (
    NoSpaceError,
    SegmentGoneError,
    UntrustedPathError,
    UnusableDirectoryError,
    ZerocopyError,
)

try:
    import fcntl
except ImportError:  # Windows has no flock
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "FULL",
    "TEMPORARY",
    "abandon",
    "close",
    "create",
    "exclusive",
    "gate",
    "inherit",
    "nothing_left",
    "opened",
    "pass_on",
    "require_leases",
    "share",
    "take_over",
    "typed",
    "typed_errors",
]

FULL = {errno.ENOSPC, errno.ENOMEM, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_ODD = {errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.EACCES, errno.EPERM}  # what opening a planted thing gives

_START = 64  # bytes without which a file is no segment

_guard = threading.RLock()  # held across a fork, so that no descriptor is open and not yet listed
_not_inherited: dict[int, str] = {}  # descriptors that a forked child closes, and the paths of their files
_in_use: dict[int, tuple[int, int]] = {}  # those of them that their opener has not passed on: its thread, and a number
_numbers = itertools.count()


def _close_in_child() -> None:
    for fd in _not_inherited:
        os.close(fd)
    _not_inherited.clear()
    _in_use.clear()
    _guard.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_close_in_child)


def typed(error: OSError, path: Path | str) -> ZerocopyError:
    """Return the error that says what the system refused and what to do."""
    if isinstance(error, ZerocopyError):
        return error
    if error.errno in (errno.ENFILE, errno.EMFILE):
        return NoSpaceError(
            error.errno, f"cannot open {path}: {error.strerror}; raise the limit of open files (ulimit -n)"
        )
    if error.errno in FULL:
        text = f"no room for {path} ({error.strerror}): free some memory, or publish in another directory (directory=)"
        return NoSpaceError(error.errno, text)
    reason = error.strerror or str(error)
    return UnusableDirectoryError(error.errno, f"cannot use {path} ({reason}); pass another directory=")


@contextmanager
def typed_errors(path: Path) -> Iterator[None]:
    """Turn errors of the system about a path into typed ones."""
    try:
        yield
    except OSError as error:
        raise typed(error, path) from error


def opened(path: Path | str, flags: int, *, folder: bool = False, foreign: bool = False) -> int:
    """Open a file or folder whose descriptor a forked child closes, unless `inherit` is called for it.

    Args:
        path: The file or folder.
        flags: As for `os.open`.
        folder: Whether a folder is wanted.
        foreign: Whether it may be a link, or another user's file, because what is read of it is verified.

    Raises:
        FileNotFoundError: It does not exist.
        UntrustedPathError: It belongs to another user, can be written by others, or is of another kind.
        NoSpaceError: The process may not open more files.
    """
    fd = -1
    try:
        with _guard:
            fd = _opened(path, flags, folder, foreign)
            _not_inherited[fd] = str(path)
            _in_use[fd] = threading.get_ident(), next(_numbers)
        return fd
    except BaseException:
        if fd >= 0:
            close(fd)  # a signal's handler has raised it
        raise


def _opened(path: Path | str, flags: int, folder: bool, foreign: bool) -> int:
    try:
        return open_trusted(str(path), flags, folder=folder, follow=folder or foreign, foreign=foreign)
    except (FileNotFoundError, FileExistsError):
        raise
    except ValueError as error:  # a zero byte in the path
        raise FileNotFoundError(errno.ENOENT, f"{str(path)!r} is no path") from error
    except OSError as error:
        if error.errno is None:
            remedy = "pass a folder inside it, which is made for this user alone, or take the right to write away"
            text = f"{error}; nothing of it was read: {remedy if folder else 'remove it, or make it yours alone'}"
            raise UntrustedPathError(text) from error
        if error.errno in _ODD and not flags & os.O_EXCL:
            text = f"{path} is a link, no plain file, or not this user's to open ({error.strerror}); remove it"
            raise UntrustedPathError(error.errno, text) from error
        raise typed(error, path) from error


def inherit(fd: int) -> None:
    """Let forked children keep a descriptor: it belongs to a model that they inherit too."""
    with _guard:
        _not_inherited.pop(fd, None)
        _in_use.pop(fd, None)


def pass_on(fds: Iterable[int]) -> None:
    """Note that descriptors belong to something that will close them."""
    with _guard:
        for fd in fds:
            _in_use.pop(fd, None)


@contextmanager
def nothing_left() -> Iterator[None]:
    """If an error ends the block, close what this thread opened in it and nothing else will close.

    A signal's handler may raise that error anywhere, also on the way into `close`.
    """
    first = next(_numbers)
    try:
        yield
    except BaseException:
        mine = threading.get_ident()
        with _guard:
            for fd in [fd for fd, (thread, number) in _in_use.items() if thread == mine and number > first]:
                close(fd)
        raise


def close(fd: int) -> None:
    """Close a descriptor that `opened` returned, and unmap its window."""
    with _guard:
        try:
            try:
                _window.drop(fd)
            finally:
                _not_inherited.pop(fd, None)
                _in_use.pop(fd, None)
        finally:
            os.close(fd)  # also when a signal's handler raises in the two before


def abandon(path: Path) -> None:
    """Close all descriptors of a file that no other thread uses, and that no child inherits.

    For an error that a signal's handler raised: the descriptor may be in no variable yet.
    """
    with _guard:
        for fd in [fd for fd, file in _not_inherited.items() if file == str(path)]:
            close(fd)


def require_leases() -> None:
    """Refuse to publish where leases cannot work.

    Raises:
        ZerocopyError: The operating system has no flock.
    """
    if fcntl is None:
        raise ZerocopyError("segment files need flock, which this operating system lacks; use Linux or macOS")


def share(fd: int, path: Path | str) -> None:
    """Take a lease on an open segment.

    Raises:
        SegmentGoneError: The file is being removed, or was removed after it was opened.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        raise SegmentGoneError(f"{path} is being removed: its publisher and every reader have left") from error
    if not _is_at(fd, path):
        raise SegmentGoneError(f"{path} was removed: its publisher and every reader have left; publish the model again")


def _is_at(fd: int, path: Path | str) -> bool:
    """Return whether an open file is the one at a path: it may have been removed or renamed since it was opened."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def create(path: Path) -> int:
    """Make a file, take a lease on it and return the descriptor."""
    while True:
        with typed_errors(path.parent):
            fd = opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        fcntl.flock(fd, fcntl.LOCK_SH)
        if os.fstat(fd).st_nlink:
            return fd
        close(fd)  # a sweep found it before the lease and took it for a killed process's


def take_over(fd: int, path: str, to: Path) -> bool:
    """Rename a file that the caller has a lease on, unless another process has one too, and return whether it did.

    The new file starts with zeros and has the caller's lease. It is written through a window from now on. The caller
    has no lease any more if this returns False.

    Args:
        fd: Its descriptor, open for writing.
        path: Where it is.
        to: Its new path.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    if not _is_at(fd, path):
        return False
    with typed_errors(to.parent):
        os.pwrite(fd, bytes(_START), 0)
        os.rename(path, to)
    with _guard:
        if fd in _not_inherited:
            _not_inherited[fd] = str(to)
    fcntl.flock(fd, fcntl.LOCK_SH)
    _window.want(fd)
    return os.fstat(fd).st_nlink > 0  # else a sweep came between the two locks, as in `create`


@contextmanager
def gate(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a machine-wide mutex during the block. It is a lock file that its last holder removes.

    Args:
        path: The lock file.
        wait: Wait until the mutex is free.

    Yields:
        Whether this process holds it; always true with `wait`.
    """
    held: list[int] = []
    try:
        _take_gate(path, held, wait=wait)
        yield bool(held)
    finally:
        for fd in held:
            leave_gate(path, fd)


def take_gate(path: Path, *, wait: bool = True) -> int | None:
    """Take the mutex of `gate` and return its descriptor, or None if it is not free."""
    held: list[int] = []
    _take_gate(path, held, wait=wait)
    return held[0] if held else None


def _take_gate(path: Path, held: list[int], *, wait: bool) -> None:
    """Take the mutex of `gate`, and note its descriptor. An error that a signal's handler raises leaves no other."""
    while not held:
        with typed_errors(path.parent):
            fd = opened(path, os.O_RDWR | os.O_CREAT)  # no other user can open it, and so none can hold it
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.fstat(fd).st_nlink:
                held.append(fd)  # else the previous holder removed it: lock the new file
        except BlockingIOError:
            return
        finally:
            if not held:
                close(fd)


def leave_gate(path: Path, fd: int) -> None:
    """Leave the mutex of `gate`."""
    try:
        path.unlink(missing_ok=True)
    finally:
        try:
            fcntl.flock(fd, fcntl.LOCK_UN)  # a process forked meanwhile may not have closed it yet
        finally:
            close(fd)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, among all processes of the machine, during the block.

    Raises:
        UnusableDirectoryError: Another process does not release it.
    """
    fd = opened(folder, os.O_RDONLY, folder=True)
    try:
        if not lock_within(fd, PATIENCE):
            raise UnusableDirectoryError(
                f"another process has held the lock of {folder} for {PATIENCE:.0f} s: end it, "
                f"and close the folder to other users (chmod 700)"
            )
        yield
    finally:
        try:
            fcntl.flock(fd, fcntl.LOCK_UN)  # as in `gate`
        finally:
            close(fd)
