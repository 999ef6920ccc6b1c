"""Segments of anonymous shared memory, sealed so that a receiver can neither change nor truncate what it reads."""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import re
from typing import Any

from .errors import UnsupportedTypeError

SEGMENT_LIMIT = 4096
"""Most segments of one link, in each direction."""
F_SEAL_FUTURE_WRITE = 0x10
SHRINK_GROW = 0x2 | 0x4
DTYPE = re.compile(r"[<>|=][biufcSUMm]\d{1,9}(\[\d{0,9}[a-zA-Z]{1,2}\])?\Z")
"""The numpy dtypes that travel."""
_FLOATS = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2")
_INTEGERS = ("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64")
TENSOR_TYPES = frozenset(_FLOATS + _INTEGERS)
"""The torch dtypes that travel."""
_ids = itertools.count(1)


class Segment:
    """One memory file with this process's writable mapping of it; the owner of its descriptor."""

    __slots__ = ("__weakref__", "fd", "map", "number", "size", "stamp", "writable")

    def __init__(self, size: int, writable: bool = False) -> None:
        self.number = next(_ids)
        self.size = size
        self.writable = writable
        self.stamp: int | None = None
        self.fd = os.memfd_create("isolate", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, size)
            self.map = mmap.mmap(self.fd, size)
            seals = SHRINK_GROW if writable else SHRINK_GROW | F_SEAL_FUTURE_WRITE
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the descriptor; the mapping ends with its last user."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            self.close()


def size_class(nbytes: int) -> int:
    """Return the size of the segment that holds `nbytes`: powers of two up to 1 MiB, then steps of an eighth."""
    if nbytes <= 1 << 20:
        return max(65536, 1 << (nbytes - 1).bit_length())
    step = 1 << ((nbytes - 1).bit_length() - 4)
    return -(-nbytes // step) * step


def dtype_text(dtype: Any) -> str:
    """Return the wire form of a numpy dtype, or raise UnsupportedTypeError."""
    text = str(dtype.str)
    if dtype.hasobject or not DTYPE.match(text):
        raise UnsupportedTypeError(
            f"an array of dtype {dtype} does not travel; wanted booleans, numbers, times or fixed-width text and bytes"
        )
    return text
