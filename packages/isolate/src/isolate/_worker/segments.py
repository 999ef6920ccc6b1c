"""Segments of anonymous shared memory, sealed so that a receiver can neither change nor truncate what it reads."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import re
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from .errors import OverloadedError, UnsupportedTypeError

if sys.platform != "win32":
    import fcntl

F_SEAL_FUTURE_WRITE = 0x10
SHRINK_GROW = 0x2 | 0x4
DTYPE = re.compile(r"[<>|=][biufcSUMm]\d{1,9}(\[\d{0,9}[a-zA-Z]{1,2}\])?\Z")
"""The numpy dtypes that travel."""
_FLOATS = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2")
_INTEGERS = ("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64")
TENSOR_TYPES = frozenset(_FLOATS + _INTEGERS)
"""The torch dtypes that travel."""
_ids = itertools.count(1)


def taken(numbers: deque[int]) -> Iterator[int]:
    """Take and yield what a deque holds; other threads may take from it and add to it at the same time."""
    while True:
        try:
            yield numbers.popleft()
        except IndexError:
            return


class Mapping:
    """A mapping of a file that keeps no copy of the descriptor, unlike that of `mmap`; it ends with its last view.

    Args:
        fd: The descriptor.
        size: Bytes to map.
        start: Where they begin, a multiple of the page size.
        writable: Whether this process may write.
        private: Whether writes stay in this process, in copies of the pages.
        gone: Called when it ended; may run in any thread's garbage collection.

    Raises:
        OSError: The kernel refused.
    """

    __slots__ = ("view",)

    def __init__(
        self,
        fd: int,
        size: int,
        *,
        start: int = 0,
        writable: bool,
        private: bool = False,
        gone: Callable[[], None] | None = None,
    ) -> None:
        protection = mmap.PROT_READ | mmap.PROT_WRITE if writable or private else mmap.PROT_READ
        flags = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
        address = libc.mmap(None, size, protection, flags, fd, start)
        if address in (None, ctypes.c_void_p(-1).value):
            number = ctypes.get_errno()
            raise OSError(number, f"{size} bytes cannot be mapped: {os.strerror(number)}")
        memory = (ctypes.c_ubyte * size).from_address(address)
        # At exit nothing is unmapped: other threads may still use it.
        weakref.finalize(memory, _unmap, address, size, gone).atexit = False
        view = memoryview(memory).cast("B")
        self.view = view if writable or private else view.toreadonly()


def _unmap(address: int, size: int, gone: Callable[[], None] | None) -> None:
    ctypes.CDLL(None).munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
    if gone is not None:
        gone()


class Segment:
    """One memory file with this process's writable mapping of it; the owner of its descriptor."""

    __slots__ = ("__weakref__", "fd", "number", "size", "view", "writable")

    def __init__(self, size: int, writable: bool = False) -> None:
        self.number = next(_ids)
        self.size = size
        self.writable = writable
        self.fd = -1
        try:
            self.fd = os.memfd_create("isolate", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self.fd, size)
            self.view = Mapping(self.fd, size, writable=True).view
            seals = SHRINK_GROW if writable else SHRINK_GROW | F_SEAL_FUTURE_WRITE
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        except OSError as failure:
            self.close()
            raise OverloadedError(f"{size} bytes of shared memory cannot be made: {failure}") from failure
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


class Block:
    """A part of a segment that holds one array at a time."""

    __slots__ = ("lease", "offset", "segment", "size", "stamp", "used")

    def __init__(self, segment: Segment, offset: int, size: int) -> None:
        self.segment = segment
        self.offset = offset
        self.size = size
        self.stamp: int | None = None
        self.lease = 0
        self.used = False

    @property
    def view(self) -> memoryview:
        """Its memory."""
        return self.segment.view[self.offset : self.offset + self.size]


def size_class(nbytes: int) -> int:
    """Return the size of the block that holds `nbytes`: powers of two up to 1 MiB, then steps of an eighth."""
    if nbytes <= 1 << 20:
        return max(65536, 1 << (nbytes - 1).bit_length())
    step = 1 << ((nbytes - 1).bit_length() - 4)
    return -(-nbytes // step) * step


def dtype_text(dtype: Any) -> str:
    """Return the wire form of a numpy dtype, or raise UnsupportedTypeError."""
    text = str(dtype.str)
    if dtype.hasobject or not DTYPE.match(text):
        raise UnsupportedTypeError(
            f"an array of dtype {dtype} does not travel; wanted booleans, numbers, times or fixed-width "
            "text and bytes; send value.tolist()"
        )
    return text
