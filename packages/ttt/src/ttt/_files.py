"""Reading and writing files whole, private to their owner, and safe in folders that others can reach."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path

from ttt.errors import UnsafeFolderError

PRIVATE, OUTPUT = 0o600, 0o666
"""Modes of files: ttt's own records, and what a user asked for (less the process's umask)."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
"""Errors of a place that cannot take more: a run goes on in memory."""


def write_atomically(path: Path, data: bytes, mode: int = PRIVATE, *, sync: bool = True) -> None:
    """Write a file so that a reader, or a crash, sees the old or the new content and never a part.

    A device, a pipe or a descriptor's name such as /dev/stdout is written to, never replaced by a file.

    Args:
        path: The file.
        data: Its content.
        mode: Its permissions, less the umask.
        sync: Whether it must survive a power failure, and not only a killed process.
    """
    if is_stream(path):
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND), "wb") as file:
            file.write(data)
        return
    if path.is_dir() or not path.name:
        raise IsADirectoryError(errno.EISDIR, "is a folder, wanted the name of a file", str(path))
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), mode)
    except OSError as error:  # which names the temporary file
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    if sync:
        sync_folder(path.parent)


def is_stream(path: Path) -> bool:
    """Whether a path is a device, a pipe, a socket, or the name of a descriptor, which may be one of a file."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    named = path.parent in (Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd"))
    return named or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power failure."""
    if os.name != "posix":
        return  # Windows has no such thing as syncing a folder
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_regular(path: Path, limit: int, *, follow: bool = True) -> bytes:
    """Read a regular file of at most `limit` bytes, without waiting for a pipe or a device.

    Args:
        path: The file.
        limit: Largest size that is read.
        follow: Whether the name may be a symbolic link.

    Raises:
        OSError: It cannot be read, is not a regular file (EINVAL), is a link (ELOOP), or is too large (EFBIG).
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags | (0 if follow else getattr(os, "O_NOFOLLOW", 0)))
    try:
        about = os.fstat(descriptor)
        if stat.S_ISDIR(about.st_mode):
            raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "is a pipe, device or socket, wanted a file", str(path))
        if about.st_size > limit:
            raise OSError(errno.EFBIG, f"has {about.st_size} bytes, wanted at most {limit}", str(path))
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return file.read(about.st_size + 1)
    finally:
        os.close(descriptor)


def read_own(path: Path, limit: int) -> bytes:
    """Read a file that this user (or root) has written and nobody else can write; links are not followed.

    Raises:
        OSError: As `read_regular`; or EPERM, where another user owns it or can write it.
    """
    if os.name == "posix":
        about = os.lstat(path)
        if about.st_uid not in (os.geteuid(), 0) or (about.st_mode & 0o022 and stat.S_ISREG(about.st_mode)):
            raise PermissionError(errno.EPERM, "another user owns it or can write it", str(path))
    return read_regular(path, limit, follow=False)


def open_folder(folder: Path) -> None:
    """Make a folder that only its owner can enter, or check one that is there.

    Raises:
        UnsafeFolderError: Other users can write to it, or one of them owns it.
        OSError: It cannot be made.
    """
    for missing in reversed([p for p in (folder, *folder.parents) if not p.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)  # `parents=True` would make those of the usual mode
    if os.name != "posix":
        return
    about = folder.stat()
    if about.st_uid not in (os.geteuid(), 0):
        raise UnsafeFolderError(f"{folder}: belongs to another user (id {about.st_uid}); choose a folder of your own")
    if about.st_mode & 0o022:
        raise UnsafeFolderError(
            f"{folder}: other users can write to it, and could plant answers; chmod go-w, or choose another folder"
        )
