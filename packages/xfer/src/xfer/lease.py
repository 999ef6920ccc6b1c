"""Leases: a reader's byte-range lock on a slot, kept by the kernel; knows file descriptors and slot numbers only.

Byte N of a segment's lock range stands for slot N. A lock belongs to the reader's own opening of the segment, and the
kernel drops it when that opening is closed, so also on `kill -9`. Nobody has to guess by a timeout whether a reader
lives.
"""

import struct
import sys

from xfer.posix import fcntl

_FLOCK = struct.Struct("hhqqi4x")
OFD = sys.platform == "linux"


class OfdLeases:
    """Locks owned by an open file description (Linux): two openings in one process are two owners."""

    @staticmethod
    def acquire(fd: int, slot: int) -> None:
        """Take a shared lock on a slot; never waits, for nobody ever holds an exclusive one."""
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, 0, slot, 1, 0))

    @staticmethod
    def release(fd: int, slot: int) -> None:
        """Give the shared lock back."""
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, 0, slot, 1, 0))

    @staticmethod
    def held(fd: int, first: int, count: int) -> bool:
        """Tell whether another opening holds a lock in a range of slots."""
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, first, count, 0))
        kind: int = _FLOCK.unpack(answer)[0]
        return kind != int(fcntl.F_UNLCK)


class PosixLeases:
    """Locks owned by a process (macOS). A process does not see its own; `xfer.reader` counts those itself."""

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
        """Tell whether another process holds a lock in a range of slots."""
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, count, first)
        except OSError:
            return True
        fcntl.lockf(fd, fcntl.LOCK_UN, count, first)
        return False


Leases = OfdLeases if OFD else PosixLeases
