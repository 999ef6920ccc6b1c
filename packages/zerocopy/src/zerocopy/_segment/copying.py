"""Copy blocks into a segment file and hash them, with two threads where a window maps the file's memory.

Without a window, a second thread gains nothing: the system lets one call at a time write to a file, and to map new
pages takes more processor time than to write them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import xxhash

from zerocopy import _window
from zerocopy._flatten import Block
from zerocopy._progress import Tick
from zerocopy._segment.format import write_all

_PIECE = 1 << 18  # bytes copied and then hashed at a time, so that the hash reads them from the processor's cache
_WORTH = 4 << 20  # bytes beside the largest block from which on a second thread gains more than its start takes

Put = Callable[[memoryview, int], object]  # copies bytes to an offset of the file


class Job(NamedTuple):
    """A block and its offset in the file."""

    block: Block
    offset: int


def copy_blocks(fd: int, size: int, jobs: Sequence[Job], tick: Tick) -> list[str]:
    """Copy blocks into an open file of a size, and return the digest of each.

    Each piece is hashed right after it was copied.

    Args:
        fd: Open for reading and writing.
        size: The file's size. Where there is a window, all of it is reserved.
        jobs: What to copy where.
        tick: Called with the size of every piece, by one thread at a time.
    """
    window = _window.over(fd, size)
    put = _writing(fd) if window is None else _into(window)
    if window is not None and _worth_two(jobs):
        return _Pair(jobs, put, tick).run()
    return [_copied(job.block.bytes_view(), job.offset, put, tick) for job in jobs]


def _worth_two(jobs: Sequence[Job]) -> bool:
    """Return whether a second thread can take a good part of the work."""
    sizes = [job.block.nbytes for job in jobs]
    if sum(sizes) - max(sizes, default=0) < _WORTH or _processors() < 2:
        return False
    return all(job.block.storage.device.type == "cpu" for job in jobs)  # else two copies on the heap at a time


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _writing(fd: int) -> Put:
    return lambda piece, offset: write_all(fd, piece, offset)


def _into(memory: Any) -> Put:
    """Return a function that copies to memory, and lets other threads run meanwhile."""
    there = np.frombuffer(memory, np.uint8)

    def put(piece: memoryview, offset: int) -> None:
        there[offset : offset + len(piece)] = np.frombuffer(piece, np.uint8)

    return put


def _copied(view: memoryview, offset: int, put: Put, tick: Tick, stopped: Callable[[], bool] | None = None) -> str:
    """Copy and hash one block and return its digest."""
    digest = xxhash.xxh3_128()
    for start in range(0, len(view), _PIECE):
        if stopped is not None and stopped():
            break
        piece = view[start : start + _PIECE]
        put(piece, offset + start)
        digest.update(piece)
        tick(len(piece))
    return digest.hexdigest()


class _Pair:
    """This thread and a helper, which take block after block, the largest first."""

    def __init__(self, jobs: Sequence[Job], put: Put, tick: Tick) -> None:
        self._jobs, self._put = jobs, put
        self._views = [job.block.bytes_view() for job in jobs]
        self._order = sorted(range(len(jobs)), key=lambda index: jobs[index].block.nbytes)
        self._digests = [""] * len(jobs)
        self._tick, self._guard = tick, threading.Lock()
        self._stop = threading.Event()
        self._failed: list[BaseException] = []

    def run(self) -> list[str]:
        """Copy all blocks, and return their digests."""
        helper = threading.Thread(target=self._work, name="zerocopy-copy")
        try:
            with suppress(RuntimeError):  # the process is ending, or may not start more threads
                helper.start()
            self._work()
        except BaseException as error:
            self._fail(error)
        # The helper writes to memory that the caller may unmap: it ends first, whatever a signal's handler raises.
        while True:
            try:
                if not helper.is_alive():
                    break
                helper.join()
            except BaseException as error:
                self._fail(error)
        if self._failed:
            raise self._failed[0]
        return self._digests

    def _work(self) -> None:
        try:
            while self._order and not self._stop.is_set():
                try:
                    index = self._order.pop()
                except IndexError:  # the other thread was quicker
                    return
                offset = self._jobs[index].offset
                self._digests[index] = _copied(self._views[index], offset, self._put, self._note, self._stop.is_set)
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._failed.append(error)
        self._stop.set()

    def _note(self, nbytes: int) -> None:
        with self._guard:
            self._tick(nbytes)
