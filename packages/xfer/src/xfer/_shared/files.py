"""Files in places that users share, and the system's refusals as errors of xfer.

Any user may make any name in /dev/shm first. A file there is used only if it is this user's, of the right kind and
closed to others, which is asked of the opened file and before a byte of it is read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator

from xfer.errors import (
    BudgetExceededError,
    TooManyOpenFilesError,
    UnsupportedPlatformError,
    UntrustedFileError,
    XferError,
)

NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
NO_MEMORY = (errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EDQUOT)
_WILL_NOT_OPEN = (errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO, errno.EACCES, errno.EPERM, errno.ENODEV)
_OTHERS = 0o077
_BUSY = (BlockingIOError, InterruptedError)


def user() -> int:
    """Return the number of the user whose files these are."""
    return os.geteuid()


def check_folder(folder: str) -> None:
    """Check that other users cannot replace this user's files in a folder.

    Raises:
        UntrustedFileError: They can.
    """
    status = os.stat(folder)
    if status.st_uid not in (0, user()) or (status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX):
        mode = stat.S_IMODE(status.st_mode)
        raise UntrustedFileError(
            f"other users can replace files in {folder} (owner {status.st_uid}, mode {mode:o}): have its administrator "
            f"run `chmod +t {folder}`"
        )


def open_own(path: str, flags: int, is_kind: Callable[[int], bool] = stat.S_ISREG) -> int:
    """Open a file of this user in a shared place; never wait and follow no link.

    Args:
        path: The file.
        flags: How to open it.
        is_kind: Says of a file's mode whether it is of the right kind.

    Raises:
        FileNotFoundError: There is none.
        UntrustedFileError: It is not this user's alone, or not of that kind.
    """
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in _WILL_NOT_OPEN:
            raise _untrusted(path, f"it cannot be opened ({error.strerror})") from error
        raise
    try:
        why = _distrust(os.fstat(fd), is_kind)
        if why:
            raise _untrusted(path, why)
        return fd
    except BaseException:
        os.close(fd)
        raise


def create_own(path: str) -> int:
    """Make a file that only this user may read and write, whatever the umask, and open it for both.

    Raises:
        FileExistsError: There is something at its place.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(fd, 0o600)
        return fd
    except BaseException:
        os.close(fd)
        raise


def open_or_create(path: str) -> int:
    """Open a file of this user for reading and writing, and make it where there is none.

    Raises:
        UntrustedFileError: What is there is not this user's alone.
    """
    while True:
        with contextlib.suppress(FileNotFoundError):
            return open_own(path, os.O_RDWR)
        with contextlib.suppress(FileExistsError):
            return create_own(path)


def open_pipe(path: str) -> int:
    """Open a named pipe of this user for reading and writing, and make it where there is none.

    Raises:
        UntrustedFileError: What is there is not this user's alone.
    """
    try:
        os.mkfifo(path, 0o600)
        os.chmod(path, 0o600)  # others cannot have replaced it: see `check_folder`
    except FileExistsError:
        pass
    return open_own(path, os.O_RDWR, stat.S_ISFIFO)


def check_owner(fd: int, what: str) -> None:
    """Check that memory or a pipe of another process is this user's.

    Raises:
        UntrustedFileError: It is another user's, which only the superuser can have opened.
    """
    owner = os.fstat(fd).st_uid
    if owner != user():
        raise UntrustedFileError(
            f"{what} belongs to user {owner}, this process is of user {user()}: run both as the same user"
        )


def is_own(path: str) -> bool:
    """Return whether a name in a shared place is a file or a named pipe of this user; nothing is opened."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return status.st_uid == user() and (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode))


@contextlib.contextmanager
def typed_errors(what: str) -> Iterator[None]:
    """Turn the system's refusals in a block into errors of xfer; "not now" passes as it is.

    Args:
        what: What was asked for, for the message.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, (XferError, *_BUSY)):
            raise
        raise typed(error, what) from error


def typed(error: OSError, what: str) -> XferError:
    """Return the error of xfer for a refusal of the system.

    Args:
        error: The refusal.
        what: What was asked for.
    """
    if error.errno in NO_DESCRIPTOR:
        return TooManyOpenFilesError(
            error.errno, f"no descriptor is left for {what} ({error.strerror}): close some, or raise `ulimit -n`"
        )
    if error.errno in NO_MEMORY:
        return BudgetExceededError(f"the system has no room for {what} ({error.strerror})")
    return UnsupportedPlatformError(error.errno, f"the system refused {what} ({error.strerror}); see `xfer doctor`")


def _distrust(status: os.stat_result, is_kind: Callable[[int], bool]) -> str | None:
    """Return why a file is not trusted, or None."""
    if status.st_uid != user():
        return f"it belongs to user {status.st_uid}"
    if not is_kind(status.st_mode):
        return "it is of another kind"
    if status.st_mode & _OTHERS:
        return f"other users may use it (mode {stat.S_IMODE(status.st_mode):o})"
    if status.st_nlink > 1:
        return "it has a second name"
    return None


def _untrusted(path: str, why: str) -> UntrustedFileError:
    return UntrustedFileError(
        f"{path} is not used: {why}, this process is of user {user()}. Remove it, or choose another name"
    )
