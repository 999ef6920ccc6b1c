"""Leases: a reader's byte-range lock on a slot, which the kernel drops when the reader's process ends.

Byte N of a segment's lock range stands for slot N. A lock belongs to the reader's own opening of the segment, so
`kill -9` ends it as well and no timeout is needed to detect a dead reader.
"""

from __future__ import annotations

import struct
import sys
from typing import Any

from xfer.errors import UnsupportedPlatformError

try:
    import fcntl as _fcntl

    fcntl: Any = _fcntl
except ImportError:  # Windows: importing xfer works there, sharing memory does not
    fcntl = None

FLOCK = struct.Struct("hhqqi4x")
OFD = sys.platform == "linux"


def require_locks() -> None:
    """Refuse to work on systems without POSIX file locks.

    Raises:
        UnsupportedPlatformError: This is Windows, or a Python without fcntl.
    """
    if fcntl is None:
        raise UnsupportedPlatformError(
            f"sharing memory between processes needs POSIX file locks, which {sys.platform} lacks; "
            "use WSL2, or only xfer.ops and xfer.GpuMemoryManager, which work here"
        )


class OfdLeases:
    """Locks owned by an open file description (Linux): two openings in one process are two owners."""

    @staticmethod
    def acquire(fd: int, slot: int) -> None:
        """Take a shared lock on a slot; never waits, because exclusive locks are never taken on slots."""
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_RDLCK, 0, slot, 1, 0))

    @staticmethod
    def release(fd: int, slot: int) -> None:
        """Give the shared lock back."""
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_UNLCK, 0, slot, 1, 0))

    @staticmethod
    def held(fd: int, first: int, count: int) -> bool:
        """Return whether another opening holds a lock in a range of slots."""
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, FLOCK.pack(fcntl.F_WRLCK, 0, first, count, 0))
        kind: int = FLOCK.unpack(answer)[0]
        return kind != int(fcntl.F_UNLCK)


class PosixLeases:
    """Locks owned by a process (macOS). A process does not see its own locks; the reader counts those."""

    @staticmethod
    def acquire(fd: int, slot: int) -> None:
        """Take a shared lock on a slot."""
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, slot)

    @staticmethod
    def release(fd: int, slot: int) -> None:
        """Give the shared lock back."""
        fcntl.lockf(fd, fcntl.LOCK_UN, 1, slot)

    @staticmethod
    def held(fd: int, first: int, count: int) -> bool:
        """Return whether another process holds a lock in a range of slots."""
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, count, first)
        except OSError:
            return True
        fcntl.lockf(fd, fcntl.LOCK_UN, count, first)
        return False


Leases = OfdLeases if OFD else PosixLeases
