"""Arrays that their reader takes over: the reader writes the stamp to a pipe of the producer, which then releases it.

The reader writes while it holds its lease, so the slot is reused only when the reader is done, even if it is killed.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import weakref

from xfer._shared.lease import fcntl
from xfer._shared.segment import CONSUMED_FD, CONSUMED_INODE, Mapping, Segment

_STAMP = struct.Struct("<Q")
_ROOM = 1 << 20
_F_SETPIPE_SZ = 1031


class Consumed:
    """The producer's side: a pipe of the stamps that readers have taken over."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with contextlib.suppress(OSError):  # the user's limit for pipes is spent: it keeps its 64 KiB
            fcntl.fcntl(self._write, _F_SETPIPE_SZ, _ROOM)
        self._inode = os.fstat(self._write).st_ino
        self._finalizer = weakref.finalize(self, _close, self._read, self._write)

    def announce(self, segment: Segment) -> None:
        """Write into a segment's header where readers find the pipe."""
        segment.words[CONSUMED_FD], segment.words[CONSUMED_INODE] = self._write, self._inode

    def stamps(self) -> list[int]:
        """Return the stamps that came since the last call."""
        found: list[int] = []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._read, 1 << 16):
                found += [stamp for (stamp,) in _STAMP.iter_unpack(data[: len(data) // 8 * 8])]
        return found

    def close(self) -> None:
        """Close both ends of the pipe."""
        self._finalizer()


def _close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


def take_over(mapping: Mapping, pid: int, stamp: int) -> None:
    """Tell the producer of a leased array that it may release it; do nothing if the producer is gone."""
    path = f"/proc/{pid}/fd/{mapping.words[CONSUMED_FD]}"
    with contextlib.suppress(OSError):
        found = os.stat(path)
        if found.st_ino != mapping.words[CONSUMED_INODE] or not stat.S_ISFIFO(found.st_mode):
            return
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(fd, _STAMP.pack(stamp))
        finally:
            os.close(fd)
