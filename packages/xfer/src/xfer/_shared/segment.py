"""Shared memory cut into equal slots: the producer makes and seals it, readers map it read-only.

A segment starts with eight 64-bit words (magic, id, stride, slots, start of the data, retired flag, and descriptor and
inode of the pipe for consumed arrays), then two words per slot (stamp and check, zero when empty), then the slots.
Nameless memory (memfd) is sealed once it is mapped: no process can map it writable, truncate or grow it afterwards, so
a reader can neither change it nor cause SIGBUS.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import secrets
import stat
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from xfer._shared import names
from xfer._shared.handle import NAMED, Fields
from xfer._shared.lease import Leases, fcntl
from xfer.errors import HandleError, ProducerGoneError, UnsupportedPlatformError

PAGE = mmap.PAGESIZE
WORDS = 8
MAGIC, ID, STRIDE, SLOTS, START, RETIRED, CONSUMED_FD, CONSUMED_INODE = range(8)
LIFE = 1 << 40  # the producer locks this byte of its segments for as long as it lives
MAGIC_VALUE = 0x31524546_58535347
POPULATE_FROM = 1 << 20
_F_ADD_SEALS, _SEALS = 1033, 0x2 | 0x4 | 0x10 | 0x1  # shrink, grow, future write, and no more seals
_MADV_POPULATE_READ, _MADV_POPULATE_WRITE = 22, 23
_MFD_NOEXEC_SEAL = 0x8


def align(value: int, unit: int) -> int:
    """Round up to a multiple."""
    return -(-value // unit) * unit


class Segment:
    """A producer's segment: the only writable mapping there will ever be."""

    def __init__(self, stride: int, slots: int, named_owner: str | None = None) -> None:
        """Make a segment.

        Args:
            stride: Bytes per slot, a multiple of 64.
            slots: How many.
            named_owner: Make a named file for this owner (see `xfer._shared.names`), or nameless memory if None.

        Raises:
            OSError: The kernel has no memory or no descriptor left.
        """
        self.id = secrets.randbits(64) | 1
        self.stride, self.slots = stride, slots
        self.start = align(8 * (WORDS + 2 * slots), PAGE)
        self.size = self.start + align(stride * slots, PAGE)
        self.path: str | None = None
        if named_owner is None:
            self.fd = new_memory(f"xfer:{os.getpid()}")
        else:
            self.path = names.segment_path(named_owner, self.id)
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if self.path is not None and sys.platform == "linux":
                os.posix_fallocate(self.fd, 0, self.size)  # a full /dev/shm is an error now, not SIGBUS later
            else:
                os.ftruncate(self.fd, self.size)
            self.map = mmap.mmap(self.fd, self.size)
            if self.path is None:
                fcntl.fcntl(self.fd, _F_ADD_SEALS, _SEALS)
                Leases.acquire(self.fd, LIFE)
        except BaseException:
            self._close_fd()
            raise
        self.inode = os.fstat(self.fd).st_ino
        self.handle_fd = self.fd if self.path is None else NAMED
        self.words = memoryview(self.map)[: self.start].cast("Q")
        for index, value in enumerate((MAGIC_VALUE, self.id, stride, slots, self.start, 0)):
            self.words[index] = value

    def populate(self, length: int) -> None:
        """Bring in the first bytes of the data at once, which is cheaper than one page fault each."""
        if sys.platform == "linux" and length >= POPULATE_FROM:
            with contextlib.suppress(OSError):  # a kernel before 5.14 faults page by page
                self.map.madvise(_MADV_POPULATE_WRITE, 0, min(align(self.start + length, PAGE), self.size))

    def close(self) -> None:
        """Release the memory; readers that have it mapped keep it until they are done."""
        if self.words is None:
            return
        self.words[RETIRED] = 1
        self.words.release()
        self.words = None  # type: ignore[assignment]  # marks the closed state; nothing reads words after close
        # Dropped, not closed: an array of a loan that is still alive keeps the mapping, and would crash without it.
        self.map = None  # type: ignore[assignment]  # likewise
        self._close_fd()

    def disown(self) -> None:
        """In a forked child: drop the parent's memory without telling its readers that it is gone."""
        self.words.release()
        self.map = None  # type: ignore[assignment]  # as in close
        os.close(self.fd)

    def _close_fd(self) -> None:
        os.close(self.fd)
        if self.path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)


class Mapping:
    """A reader's own opening and read-only mapping of a segment, kept between uses."""

    __slots__ = ("alive_path", "counts", "fd", "id", "idle_since", "map", "size", "slots", "start", "stride", "words")

    def __init__(self, fields: Fields) -> None:
        """Open and map the segment that a handle names.

        Raises:
            ProducerGoneError: The producer or its segment is not there any more.
            HandleError: There is something else at that place.
        """
        pid, fd, segment = fields.pid, fields.fd, fields.segment
        self.alive_path: str | None = None
        if fd == NAMED:
            self.fd, self.alive_path = names.open_segment(pid, segment)
        else:
            self.fd = _open_foreign(pid, fd, fields.inode)
        try:
            status = os.fstat(self.fd)
            if status.st_ino != fields.inode or status.st_size < PAGE:
                raise ProducerGoneError(
                    f"descriptor {fd} of process {pid} is something else now: the segment was freed"
                )
            self.map = mmap.mmap(self.fd, status.st_size, prot=mmap.PROT_READ)
            self.words = memoryview(self.map).cast("Q")
            if self.words[MAGIC] != MAGIC_VALUE or self.words[ID] != segment:
                raise ProducerGoneError(f"the segment at descriptor {fd} of process {pid} is not the one of the handle")
            self.id, self.stride, self.slots, self.start = segment, *self.words[STRIDE : START + 1].tolist()
            if self.start + self.stride * self.slots > status.st_size:
                raise HandleError("the segment is shorter than its own header says")
        except BaseException:
            os.close(self.fd)
            raise
        self.words = self.words[: self.start // 8]
        self.size = status.st_size
        self.counts: dict[int, int] = {}
        self.idle_since = 0.0

    def abandoned(self) -> bool:
        """Return whether the producer has freed the segment or ended."""
        if self.words[RETIRED]:
            return True
        if self.alive_path is not None:
            return not names.is_locked(self.alive_path)
        return not Leases.held(self.fd, LIFE, 1)

    def private(self, offset: int, nbytes: int) -> np.ndarray[Any, Any]:
        """Map a part once more, writable and private: what is written stays in this process."""
        first = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        length = offset + nbytes - first
        memory = mmap.mmap(self.fd, length, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE, offset=first)
        if sys.platform == "linux" and length >= POPULATE_FROM:
            with contextlib.suppress(OSError, ValueError):  # a kernel before 5.14 faults page by page
                memory.madvise(_MADV_POPULATE_READ)
        return np.ndarray((nbytes,), np.uint8, memory, offset - first)

    def close(self) -> None:
        """Unmap as soon as no array looks at it, and close now."""
        self.words.release()
        del self.map  # unmapped with the last array that looks at it
        os.close(self.fd)


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
        OSError: This process has no descriptor left.
    """
    path = f"/proc/{pid}/fd/{fd}"
    try:
        found = os.stat(path)  # looks at the file without opening it: opening a FIFO would wait
        if found.st_ino == inode and is_kind(found.st_mode):
            own = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
            if os.fstat(own).st_ino == inode:
                return own
            os.close(own)
    except OSError as error:
        if error.errno in (errno.ENFILE, errno.EMFILE):  # this process's own limit
            raise
        if not os.path.isdir("/proc/self/fd"):
            raise UnsupportedPlatformError("/proc is closed here: use Pool(backend='named')") from error
        raise ProducerGoneError(
            f"descriptor {fd} of process {pid} cannot be opened ({error.strerror}): the producer has exited, freed the "
            "segment, runs as another user, or lives in another process namespace; `xfer doctor` shows which"
        ) from error
    raise ProducerGoneError(f"descriptor {fd} of process {pid} is something else now: the memory was freed")


def _open_foreign(pid: int, fd: int, inode: int) -> int:
    return open_by_number(pid, fd, inode, os.O_RDONLY, stat.S_ISREG)
