"""Arrays that several processes write: memory without the stamps and leases of a pool, for parts of one result."""

from __future__ import annotations

import mmap
import os
import stat
import struct
import sys
import weakref
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import numpy as np

from xfer._arguments import lengths, token_bytes
from xfer._shared import dtypes
from xfer._shared.files import typed_errors
from xfer._shared.lease import fcntl, require_locks
from xfer._shared.memory import new_memory, open_by_number
from xfer._sizes import format_size
from xfer.errors import BudgetExceededError, HandleError, StaleHandleError

_HEAD = struct.Struct("<4sIIQHH")  # magic, process, descriptor, inode, dimensions, length of the dtype
_MAGIC = b"XFW1"


class WritableArray:
    """An array that every process which has it may write; workers fill their parts of one result in it.

    Nothing orders what processes write: let each write its own part, and read after they have said that they are done.
    The sealed arrays of a pool stay read-only; this is memory of its own, outside of any pool's budget. It is all zeros
    at first, and is freed when the last process that has it is done.

    Args:
        shape: The array's shape.
        dtype: Its data type.
        token: The bytes of the array to attach to; `from_bytes` passes them.

    Raises:
        ValueError: A length is negative or no whole number.
        UnsupportedDtypeError: The dtype holds Python objects.
        BudgetExceededError: The system has no room for it.
        UnsupportedPlatformError: This is not Linux.

    Example:
        >>> result = xfer.WritableArray((2, 3), np.int64)
        >>> part = xfer.WritableArray.from_bytes(bytes(result))  # as a worker would
        >>> part.array[1] = 7
        >>> result.array.sum(axis=1)
        array([ 0, 21])
    """

    def __init__(self, shape: int | Sequence[int], dtype: Any = np.float64, *, token: bytes | None = None) -> None:
        require_locks()
        sizes, kind = lengths(shape), np.dtype(dtype)
        with typed_errors("a writable array"):
            fd, self._token = _create(sizes, kind) if token is None else (_open(token), token)
            try:
                self._array: np.ndarray[Any, Any] | None = np.ndarray(sizes, kind, mmap.mmap(fd, 0))
            except (TypeError, ValueError) as error:
                os.close(fd)
                raise HandleError(f"the array does not fit its memory: {error}") from error
            except BaseException:
                os.close(fd)
                raise
        self._finalizer = weakref.finalize(self, os.close, fd)
        self._finalizer.atexit = False

    @classmethod
    def from_bytes(cls, token: bytes) -> WritableArray:
        """Return the array that `bytes(array)` came from, writable here as well.

        Args:
            token: What `bytes(array)` returned.

        Raises:
            HandleError: The bytes are damaged.
            ProducerGoneError: The process that made it has ended or closed it.
        """
        token = token_bytes(token, "a WritableArray")
        if len(token) < _HEAD.size + 4 or crc32(token[:-4]) != int.from_bytes(token[-4:], "little"):
            raise HandleError("these bytes are not an intact writable array")
        magic, _, _, _, ndim, _ = _HEAD.unpack_from(token)
        if magic != _MAGIC:
            raise HandleError(f"these bytes start with {magic!r}: they are not a writable array of this xfer")
        if len(token) < _HEAD.size + 8 * ndim + 4:
            raise HandleError("these bytes are not an intact writable array: they are too short for their dimensions")
        shape = struct.unpack_from(f"<{ndim}Q", token, _HEAD.size)
        return cls(shape, dtypes.decode(token[_HEAD.size + 8 * ndim : -4]), token=token)

    @property
    def array(self) -> np.ndarray[Any, Any]:
        """The array; it stays usable after `close` for those that hold it."""
        if self._array is None:
            raise StaleHandleError("this writable array is closed")
        return self._array

    def close(self) -> None:
        """Release it here; in the process that made it, let no other attach any more."""
        self._array = None
        self._finalizer()

    def __bytes__(self) -> bytes:
        return self._token

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        return WritableArray.from_bytes, (self._token,)

    def __enter__(self) -> WritableArray:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _create(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, bytes]:
    """Return the descriptor of new memory, and the bytes that name it."""
    name = dtypes.encode(dtype)
    nbytes = max(1, dtype.itemsize)
    for length in shape:
        nbytes *= length
    if nbytes > sys.maxsize:
        raise BudgetExceededError(f"asked for {format_size(nbytes)}, which is more than a process can address")
    fd = new_memory("xfer-writable")
    try:
        os.ftruncate(fd, max(nbytes, 1))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        body = _HEAD.pack(_MAGIC, os.getpid(), fd, os.fstat(fd).st_ino, len(shape), len(name))
        body += struct.pack(f"<{len(shape)}Q", *shape) + name
        return fd, body + struct.pack("<I", crc32(body))
    except BaseException:
        os.close(fd)
        raise


def _open(token: bytes) -> int:
    _, pid, number, inode, _, _ = _HEAD.unpack_from(token)
    return open_by_number(pid, number, inode, os.O_RDWR, stat.S_ISREG)
