"""Shared memory cut into equal slots: the producer makes and seals it, readers map it read-only.

A segment starts with eight 64-bit words (magic, id, stride, slots, start of the data, retired flag, and descriptor and
inode of the ledger of consumed arrays), then two words per slot (stamp and check, zero when empty), then the slots.
Nameless memory (memfd) is sealed once it is mapped: no process can map it writable, truncate or grow it afterwards, so
a reader can neither change it nor cause SIGBUS.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import stat
import sys

from xfer._shared import names
from xfer._shared.consumed import Ledger, open_ledger
from xfer._shared.files import create_own
from xfer._shared.handle import NAMED, Fields
from xfer._shared.lease import Leases, fcntl
from xfer._shared.memory import new_memory, open_by_number
from xfer._shared.private import PAGE, POPULATE_FROM, PrivateMap
from xfer.errors import HandleError, ProducerGoneError

WORDS = 8
MAGIC, ID, STRIDE, SLOTS, START, RETIRED, LEDGER_FD, LEDGER_INODE = range(8)
LIFE = 1 << 40  # the producer locks this byte of its segments for as long as it lives
MAGIC_VALUE = 0x31524546_58535347
_F_ADD_SEALS, _SEALS = 1033, 0x2 | 0x4 | 0x10 | 0x1  # shrink, grow, future write, and no more seals
_F_GET_SEALS, _SIZE_SEALS = 1034, 0x2 | 0x4
_MADV_POPULATE_WRITE = 23


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
        self.ledger: Ledger | None = None
        if named_owner is None:
            self.fd = new_memory(f"xfer:{os.getpid()}")
        else:
            self.path = names.segment_path(named_owner, self.id)
            self.fd = create_own(self.path)
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
            self.map = None  # type: ignore[assignment]  # it has a descriptor of its own
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

    def keep_ledger(self) -> None:
        """Let readers take arrays of this segment over from now on.

        Raises:
            TooManyOpenFilesError: No descriptor is left.
        """
        if self.ledger is None:
            self.ledger = Ledger(self.slots)
            self.words[LEDGER_FD], self.words[LEDGER_INODE] = self.ledger.fd, self.ledger.inode

    def close(self, retired: bool = True) -> None:
        """Release the memory; readers that have it mapped keep it until they are done.

        Args:
            retired: Tell readers that it is gone. False where another process has inherited it.
        """
        if self.words is None:
            return
        self.words[RETIRED] = int(retired)
        self.words.release()
        self.words = None  # type: ignore[assignment]  # marks the closed state; nothing reads words after close
        # Dropped, not closed: an array of a loan that is still alive keeps the mapping, and would crash without it.
        self.map = None  # type: ignore[assignment]  # likewise
        self._close_fd()
        self._close_ledger()

    def disown(self) -> None:
        """In a forked child: drop the parent's memory without telling its readers that it is gone."""
        self.words.release()
        self.map = None  # type: ignore[assignment]  # as in close
        os.close(self.fd)
        self._close_ledger()

    def _close_ledger(self) -> None:
        if self.ledger is not None:
            self.ledger.close()
            self.ledger = None

    def _close_fd(self) -> None:
        os.close(self.fd)
        if self.path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)


class Mapping:
    """A reader's own opening and read-only mapping of a segment, kept between uses."""

    __slots__ = (
        "alive_path", "counts", "fd", "id", "idle_since", "ledger", "map", "size", "slots", "spare", "start", "stride",
        "words",
    )  # fmt: skip

    def __init__(self, fields: Fields, inherited: int | None = None) -> None:
        """Open and map the segment that a handle names.

        Args:
            fields: The handle's fields.
            inherited: This process's descriptor of the segment, if it inherited it from a worker that returned.

        Raises:
            ProducerGoneError: The producer or its segment is not there any more.
            HandleError: There is something else at that place.
        """
        pid, fd, segment = fields.pid, fields.fd, fields.segment
        self.alive_path: str | None = None
        self.ledger = -1
        if inherited is not None:
            self.fd = os.open(f"/proc/self/fd/{inherited}", os.O_RDONLY | os.O_CLOEXEC)
        elif fd == NAMED:
            self.fd, self.alive_path = names.open_segment(pid, segment)
        else:
            self.fd = _open_foreign(pid, fd, fields.inode)
        try:
            status = os.fstat(self.fd)
            if status.st_ino != fields.inode or status.st_size < PAGE or status.st_size % PAGE:
                raise ProducerGoneError(
                    f"descriptor {fd} of process {pid} is something else now: the segment was freed"
                )
            if fd != NAMED and not _sealed(self.fd):
                raise HandleError(f"the memory at descriptor {fd} of process {pid} can be truncated: it is no segment")
            self.map = mmap.mmap(self.fd, status.st_size, prot=mmap.PROT_READ)
            self.words = memoryview(self.map).cast("Q")
            if self.words[MAGIC] != MAGIC_VALUE or self.words[ID] != segment:
                raise ProducerGoneError(f"the segment at descriptor {fd} of process {pid} is not the one of the handle")
            self.id, self.stride, self.slots, self.start = segment, *self.words[STRIDE : START + 1].tolist()
            if self.start + self.stride * self.slots > status.st_size or self.start < 8 * (WORDS + 2 * self.slots):
                raise HandleError("the segment is shorter than its own header says")
        except BaseException:
            self.words = self.map = None  # type: ignore[assignment]  # unmapped now, not with the traceback
            os.close(self.fd)
            raise
        self.words = self.words[: self.start // 8]
        self.size = status.st_size
        self.counts: dict[int, int] = {}
        self.idle_since = 0.0
        self.spare: PrivateMap | None = None  # of the only slot

    def abandoned(self) -> bool:
        """Return whether the producer has freed the segment or ended."""
        if self.words[RETIRED]:
            return True
        if self.alive_path is not None:
            return not names.is_locked(self.alive_path)
        return not Leases.held(self.fd, LIFE, 1)

    def private(self, slot: int) -> PrivateMap:
        """Return a writable mapping of a slot: what is written stays in this process."""
        private, self.spare = self.spare, None
        return private or PrivateMap(self.fd, self.start + slot * self.stride, self.stride)

    def keep(self, private: PrivateMap) -> None:
        """Keep a private mapping whose array is gone for the next array, where the segment is one slot."""
        if self.slots == 1 and self.spare is None and private.reset():
            self.spare = private

    def open_ledger(self, pid: int) -> int:
        """Return the ledger of consumed arrays, for reading and writing.

        Raises:
            ProducerGoneError: The producer has ended.
            TooManyOpenFilesError: No descriptor is left.
        """
        if self.ledger < 0:
            self.ledger = open_ledger(pid, self.words[LEDGER_FD], self.words[LEDGER_INODE])
        return self.ledger

    def close(self) -> None:
        """Close now, and unmap once no array over it is alive."""
        self.words.release()
        self.spare = None
        del self.map  # unmapped with the last array over it
        os.close(self.fd)
        if self.ledger >= 0:
            os.close(self.ledger)


def _sealed(fd: int) -> bool:
    """Return whether memory can neither shrink nor grow, so that reading it cannot end in SIGBUS."""
    seals: int = fcntl.fcntl(fd, _F_GET_SEALS)
    return seals & _SIZE_SEALS == _SIZE_SEALS


def _open_foreign(pid: int, fd: int, inode: int) -> int:
    return open_by_number(pid, fd, inode, os.O_RDONLY, stat.S_ISREG)
