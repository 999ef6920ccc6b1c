"""Mappings through which a publisher writes segments whose memory it uses again, with their page tables kept.

To copy into pages that are mapped takes less than half the time of the system's `write`. To map them takes longer, so
that a window stays as long as the descriptor of its file. No forked child has it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from contextlib import suppress
from typing import NamedTuple

_SHARED_MEMORY = "/dev/shm"  # on a disk the kernel takes the right to write from each page after its write-back
_POPULATE_WRITE = 23
_FAILED = ctypes.c_void_p(-1).value
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class _Window(NamedTuple):
    """A shared mapping of a file; of no bytes before the file is written through it."""

    address: int
    nbytes: int


_windows: dict[int, _Window] = {}  # by the file's descriptor
_guard = threading.RLock()  # held across a fork, so that no child gets a mapping that is just being made


def _forget_in_child() -> None:
    _windows.clear()  # the child lacks the memory: to unmap it would hit what is there now
    _guard.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_forget_in_child)


def want(fd: int) -> None:
    """Have an open file written through a window from now on."""
    with _guard:
        _windows.setdefault(fd, _Window(0, 0))


def drop(fd: int) -> None:
    """Unmap the window of a descriptor that is about to be closed."""
    with _guard:
        window = _windows.pop(fd, None)
        if window is not None:
            _unmap(window)


def over(fd: int, nbytes: int) -> memoryview | None:
    """Return the first bytes of a file to write to, or None where there is no window for it.

    The file has to hold that many bytes, all reserved. The memory is valid until `drop`.
    """
    with _guard:
        window = _windows.get(fd)
        if window is None:
            return None
        if window.nbytes < nbytes:
            _unmap(window)
            window = _windows[fd] = _mapped(fd, nbytes)
            # All at once, and with an error in place of a signal where a page cannot be had.
            if window.nbytes and _call("madvise", window, _POPULATE_WRITE):
                _unmap(window)
                window = _windows[fd] = _Window(0, 0)
    if window.nbytes < nbytes:
        return None
    return memoryview((ctypes.c_ubyte * nbytes).from_address(window.address)).cast("B")


def _mapped(fd: int, nbytes: int) -> _Window:
    none = _Window(0, 0)
    if _libc is None or not in_shared_memory(fd):
        return none
    _libc.mmap.restype = ctypes.c_void_p
    both = mmap.PROT_READ | mmap.PROT_WRITE
    address = _libc.mmap(None, ctypes.c_size_t(nbytes), both, mmap.MAP_SHARED, fd, ctypes.c_long(0))
    if address in (None, _FAILED):
        return none
    window = _Window(address, nbytes)
    if _call("madvise", window, mmap.MADV_DONTFORK):
        _unmap(window)
        return none
    return window


def _unmap(window: _Window) -> None:
    if window.nbytes and _libc is not None:
        _libc.munmap(ctypes.c_void_p(window.address), ctypes.c_size_t(window.nbytes))


def _call(name: str, window: _Window, argument: int) -> int:
    function = getattr(_libc, name)
    return int(function(ctypes.c_void_p(window.address), ctypes.c_size_t(window.nbytes), argument))


def in_shared_memory(fd: int) -> bool:
    """Return whether an open file lies where the system keeps shared memory."""
    with suppress(OSError):
        return os.fstat(fd).st_dev == os.stat(_SHARED_MEMORY).st_dev
    return False
