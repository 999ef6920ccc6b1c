"""Shared memory without a name: made here, and opened from another process by the number of its descriptor there."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

from xfer._shared.files import NO_DESCRIPTOR, check_owner
from xfer.errors import ProducerGoneError, UnsupportedPlatformError, UntrustedFileError

_MFD_NOEXEC_SEAL = 0x8


def new_memory(name: str) -> int:
    """Return the descriptor of new memory without a name, which may be sealed."""
    if sys.platform != "linux":
        raise UnsupportedPlatformError(f"nameless shared memory needs Linux, this is {sys.platform}")
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:  # that is a kernel before 6.3
            raise
        return os.memfd_create(name, flags)


def nameless_works() -> bool:
    """Return whether nameless segments can be made here and opened again by their number."""
    if sys.platform != "linux" or not os.path.isdir("/proc/self/fd"):
        return False
    try:
        fd = new_memory("xfer:probe")
    except OSError:
        return False
    os.close(fd)
    return True


def open_by_number(pid: int, fd: int, inode: int, flags: int, is_kind: Callable[[int], bool]) -> int:
    """Open a descriptor of another process; never wait, and open nothing but the file that is meant.

    Args:
        pid: The process.
        fd: The descriptor's number there.
        inode: The file's inode.
        flags: How to open it.
        is_kind: Says of a file's mode whether it is of the right kind.

    Raises:
        ProducerGoneError: The process or the file is not there any more.
        UnsupportedPlatformError: /proc is closed.
        UntrustedFileError: It belongs to another user.
        OSError: This process has no descriptor left.
    """
    path = f"/proc/{pid}/fd/{fd}"
    try:
        found = os.stat(path)  # looks at the file without opening it: opening a FIFO would wait
        if found.st_ino == inode and is_kind(found.st_mode):
            own = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                check_owner(own, f"descriptor {fd} of process {pid}")
                if os.fstat(own).st_ino == inode:
                    return own
            except BaseException:
                os.close(own)
                raise
            os.close(own)
    except UntrustedFileError:
        raise
    except OSError as error:
        if error.errno in NO_DESCRIPTOR:  # this process's own limit
            raise
        if not os.path.isdir("/proc/self/fd"):
            raise UnsupportedPlatformError(
                "/proc is closed here: only topics and handles of a Pool(backend='named') work"
            ) from error
        raise ProducerGoneError(
            f"descriptor {fd} of process {pid} cannot be opened ({error.strerror}): the producer has exited, freed the "
            "segment, runs as another user, or lives in another process namespace; `xfer doctor` shows which"
        ) from error
    raise ProducerGoneError(f"descriptor {fd} of process {pid} is something else now: the memory was freed")
