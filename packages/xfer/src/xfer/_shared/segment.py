"""Pieces of shared memory cut into equal slots: made and sealed here, mapped read-only there; knows no arrays.

A segment starts with eight 64-bit words (magic, id, stride, slots, start of the data, retired flag), then two words
per slot (stamp and check, zero when empty), then the slots. Nameless memory (memfd) is sealed once it is mapped:
nobody can map it writable, truncate or grow it afterwards, so a reader cannot spoil it and nobody meets SIGBUS.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import secrets
import sys

from xfer._shared import names
from xfer._shared.handle import NAMED, Fields
from xfer._shared.lease import fcntl
from xfer.errors import HandleError, ProducerGoneError, UnsupportedPlatformError

PAGE = mmap.PAGESIZE
WORDS = 8
MAGIC, ID, STRIDE, SLOTS, START, RETIRED = range(6)
MAGIC_VALUE = 0x31524546_58535347
POPULATE_FROM = 1 << 20
_F_ADD_SEALS, _SEALS = 1033, 0x2 | 0x4 | 0x10 | 0x1  # shrink, grow, future write, and no more seals
_MADV_POPULATE_WRITE = 23
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
            self.fd = _memfd(f"xfer:{os.getpid()}")
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
                fcntl.flock(self.fd, fcntl.LOCK_EX)
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
        """Let go of the memory; readers that have it mapped keep it until they are done."""
        if self.words is None:
            return
        self.words[RETIRED] = 1
        self.words.release()
        self.words = None  # type: ignore[assignment]  # marks the closed state; nothing reads words after close
        # Not closed but dropped: an array of a loan that somebody still has keeps it mapped, and would crash without.
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
    """A reader's view of somebody's segment: own opening (so own leases), read-only mapping, kept between uses."""

    __slots__ = ("alive_path", "counts", "fd", "id", "map", "size", "slots", "start", "stride", "words")

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
            self.fd = _open_foreign(pid, fd)
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

    def abandoned(self) -> bool:
        """Tell whether the producer has freed the segment or ended."""
        if self.words[RETIRED]:
            return True
        if self.alive_path is not None:
            return not names.is_locked(self.alive_path)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Unmap as soon as no array looks at it, and close now."""
        self.words.release()
        del self.map  # unmapped with the last array that looks at it
        os.close(self.fd)


def _memfd(name: str) -> int:
    if sys.platform != "linux":
        raise UnsupportedPlatformError(f"nameless shared memory needs Linux, this is {sys.platform}")
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:  # that is a kernel before 6.3
            raise
        return os.memfd_create(name, flags)


def _open_foreign(pid: int, fd: int) -> int:
    try:
        return os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENFILE, errno.EMFILE):  # ours to handle, says nothing about the producer
            raise
        raise ProducerGoneError(
            f"descriptor {fd} of process {pid} cannot be opened ({error.strerror}): the producer has exited, freed the "
            "segment, runs as another user, or lives in another process namespace; `xfer doctor` tells which holds here"
        ) from error
