"""Spilled blocks on disk: one file without a name, cut into pieces that are reused.

A file without a name is removed by the kernel when its process ends, however it ends.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np

from xfer._sizes import slot_size
from xfer.errors import SpilledDataLostError


class SpillFile:
    """Pieces of one file.

    Args:
        folder: On which disk; the temporary folder if None.

    Raises:
        OSError: The folder is not there or cannot be written to.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self._pid = os.getpid()
        self._file = tempfile.TemporaryFile(dir=folder, prefix="xfer-spill-", buffering=0)  # noqa: SIM115 - it stays open
        self._free: dict[int, list[int]] = {}
        self._end = self._used = 0

    @property
    def inherited(self) -> bool:
        """Whether it belongs to the process that this one was forked from, which may have changed it since."""
        return os.getpid() != self._pid

    def write(self, data: np.ndarray[Any, Any]) -> int:
        """Write bytes and return where they are.

        Raises:
            OSError: The disk is full.
        """
        size = slot_size(data.nbytes)
        free = self._free.setdefault(size, [])
        offset = free[-1] if free else self._end
        self._file.seek(offset)
        rest = data.data
        while rest:
            rest = rest[self._file.write(rest) :]
        if free:
            free.pop()
        else:
            self._end += size
        self._used += 1
        return offset

    def read(self, offset: int, nbytes: int) -> np.ndarray[Any, Any]:
        """Return the bytes that were written there.

        Raises:
            SpilledDataLostError: They are not all there, cannot be read, or belong to another process.
        """
        if self.inherited:
            raise SpilledDataLostError(
                f"the block was spilled by process {self._pid} before this one was forked from it: use it there"
            )
        data = np.empty(nbytes, np.uint8)
        rest = data.data
        while rest:
            try:
                self._file.seek(offset + nbytes - len(rest))
                count = self._file.readinto(rest)
            except OSError as error:
                raise SpilledDataLostError(error.errno, f"a spilled block cannot be read ({error.strerror})") from error
            if not count:
                raise SpilledDataLostError(
                    f"of a spilled block of {nbytes} bytes the last {len(rest)} are gone: its file was cut"
                )
            rest = rest[count:]
        return data

    def release(self, offset: int, nbytes: int) -> None:
        """Free a piece; the file is emptied with the last one."""
        if self.inherited:
            return
        self._free[slot_size(nbytes)].append(offset)
        self._used -= 1
        if not self._used:
            self._file.truncate(0)
            self._free.clear()
            self._end = 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()
