"""Arrays that their reader takes over: the reader writes the stamp into a ledger of the producer, which releases it.

A segment with such arrays has a ledger: shared memory with one word per slot. A reader writes while it leases the
slot, so the slot is reused only when the reader is done, even if it is killed. Nothing is lost when the producer is
slow to look, and a second reader sees that the array is taken.
"""

from __future__ import annotations

import mmap
import os
import stat
from typing import TYPE_CHECKING

import numpy as np

from xfer._shared.files import NO_DESCRIPTOR, typed, typed_errors
from xfer._shared.lease import fcntl
from xfer._shared.memory import new_memory, open_by_number
from xfer.errors import ProducerGoneError, StaleHandleError

if TYPE_CHECKING:
    from xfer._shared.handle import Fields

_WORD = 8


class Ledger:
    """The producer's side.

    Args:
        slots: How many slots the segment has.

    Raises:
        TooManyOpenFilesError: No descriptor is left.
        BudgetExceededError: The system has no memory left.
    """

    def __init__(self, slots: int) -> None:
        with typed_errors("the ledger of consumed arrays"):
            self.fd = new_memory("xfer-consumed")
            try:
                os.ftruncate(self.fd, _WORD * slots)
                fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
                self._words = np.ndarray((slots,), np.uint64, mmap.mmap(self.fd, _WORD * slots))
            except BaseException:
                os.close(self.fd)
                raise
        self.inode = os.fstat(self.fd).st_ino

    def taken(self) -> list[int]:
        """Return the stamps that readers have written since the last call."""
        slots = np.flatnonzero(self._words)
        stamps: list[int] = self._words[slots].tolist()
        self._words[slots] = 0
        return stamps

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


def open_ledger(pid: int, number: int, inode: int) -> int:
    """Open the ledger of another process's segment.

    Raises:
        ProducerGoneError: The producer has ended, or closed it.
        TooManyOpenFilesError: No descriptor is left.
    """
    if not number:
        raise ProducerGoneError("the segment has no ledger of consumed arrays any more")
    try:
        return open_by_number(pid, number, inode, os.O_RDWR, stat.S_ISREG)
    except OSError as error:
        if error.errno in NO_DESCRIPTOR:
            raise typed(error, "the ledger of consumed arrays") from error
        raise


def check_not_taken(ledger: int, fields: Fields) -> None:
    """Check that no reader has taken an array over.

    Raises:
        StaleHandleError: One has.
    """
    if os.pread(ledger, _WORD, _WORD * fields.slot) == fields.stamp.to_bytes(_WORD, "little"):
        raise StaleHandleError("another reader has taken the array behind this handle over: it can be read once")


def take_over(ledger: int, fields: Fields) -> None:
    """Write that this process has taken an array over."""
    os.pwrite(ledger, fields.stamp.to_bytes(_WORD, "little"), _WORD * fields.slot)
