"""Private mappings of slots: an array may be changed in place there, and no other process sees it.

A mapping is used again for the next array in its slot, because mapping 64 MB anew takes longer than copying them. The
kernel tells which of its pages were written: those are given up when the array ends, and show the slot again.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from typing import Any

import numpy as np

from xfer._shared.files import typed_errors
from xfer._shared.memory import new_memory

POPULATE_FROM = 1 << 20
PAGE = mmap.PAGESIZE
_MADV_POPULATE_READ = 22
Pages = np.ndarray[Any, np.dtype[np.intp]]
_OF_A_FILE, _SWAPPED = np.uint64(1 << 61), np.uint64(1 << 62)  # of an entry in /proc/self/pagemap
_MOST_RUNS = 16  # of pages that are given up one run at a time: a write to each row of an array makes thousands


class PrivateMap:
    """A writable mapping of a slot, private to this process.

    Args:
        fd: The segment.
        offset: Where the slot starts in it.
        room: How many bytes the slot has.

    Raises:
        BudgetExceededError: The process may map no more memory.
    """

    __slots__ = ("_address", "_lead", "_memory", "_populated", "_used")

    def __init__(self, fd: int, offset: int, room: int) -> None:
        first = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        self._lead = offset - first
        with typed_errors("memory of its own for an array"):
            self._memory = mmap.mmap(
                fd, self._lead + room, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE, offset=first
            )
        self._address = np.frombuffer(self._memory, np.uint8).__array_interface__["data"][0]
        self._populated = self._used = 0

    def array(self, nbytes: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """Return the first bytes of the slot as a writable array, which is the only one until `reset`."""
        self._used = self._lead + nbytes
        if self._used - self._populated >= POPULATE_FROM and sys.platform == "linux":
            start = self._populated // PAGE * PAGE
            with contextlib.suppress(OSError, ValueError):  # a kernel before 5.14 faults page by page
                self._memory.madvise(_MADV_POPULATE_READ, start, self._used - start)
            self._populated = self._used
        return np.ndarray((nbytes,), np.uint8, self._memory, self._lead)

    def reset(self) -> bool:
        """Give up what was written; return whether the mapping shows the slot again, for its next array.

        The array that `array` returned must be gone.
        """
        try:
            written = _written(self._address, self._used) if pages_are_told() else None
            if written is None:
                return False
            firsts, counts = _runs(written)
            if len(firsts) > _MOST_RUNS:
                self._memory.madvise(mmap.MADV_DONTNEED, 0, self._used)
                self._populated = 0
                return True
            for first, count in zip(firsts.tolist(), counts.tolist(), strict=True):
                self._memory.madvise(mmap.MADV_DONTNEED, first * PAGE, count * PAGE)
        except (OSError, ValueError, MemoryError):
            return False
        return True


def _written(address: int, nbytes: int) -> Pages | None:
    """Return which pages of a private mapping this process has written, or None where the system does not tell."""
    pages = -(-nbytes // PAGE)
    try:
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        entries = np.frombuffer(os.pread(fd, 8 * pages, address // PAGE * 8), np.uint64)
    except OSError:
        return None
    finally:
        os.close(fd)
    if len(entries) != pages:
        return None
    there = entries >= _SWAPPED  # in memory, or swapped out
    return np.flatnonzero(there & (entries & _OF_A_FILE == 0))


def _runs(pages: Pages) -> tuple[Pages, Pages]:
    """Return where each run of neighbouring pages starts, and its length."""
    starts = np.flatnonzero(np.diff(pages, prepend=-2) != 1)
    return pages[starts], np.diff(starts, append=len(pages))


_told: bool | None = None


def pages_are_told() -> bool:
    """Return whether the system tells which pages of a private mapping were written, which is tried once."""
    global _told
    if _told is None and sys.platform == "linux":
        with contextlib.suppress(OSError, MemoryError):  # no descriptor or memory is left now: it is tried again
            _told = try_pages()
    return bool(_told)


def try_pages() -> bool:
    """Write to one page of a private mapping, and return whether the system tells that page and no other.

    Raises:
        OSError: The system has no room for the attempt.
    """
    fd = new_memory("xfer:probe")
    try:
        os.ftruncate(fd, 3 * PAGE)
        with mmap.mmap(fd, 3 * PAGE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as memory:
            read, memory[PAGE] = memory[0], 1
            address = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
            written = _written(address, 3 * PAGE)
    finally:
        os.close(fd)
    return read == 0 and written is not None and written.tolist() == [1]
