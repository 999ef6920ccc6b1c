"""Detects whether memory has changed since the last question.

The kernel tracks writes to a range (`userfaultfd` with asynchronous write protection, and the `PAGEMAP_SCAN` ioctl,
Linux 6.7 and later; see the kernel's documentation of pagemap), so that a question about 64 MB takes microseconds. A
hash would take longer than a copy. Where writes cannot be tracked there is no version, and the caller copies.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import os
import platform
import struct
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

if sys.platform != "win32":
    import fcntl

SMALLEST = 4 << 20
_SYSCALL = {"x86_64": 323, "aarch64": 282}
_USER_MODE_ONLY = 1
_API, _REGISTER, _UNREGISTER, _SCAN = 0xC018AA3F, 0xC020AA00, 0x8010AA01, 0xC0606610
_WP_ASYNC, _MODE_WP = 1 << 15, 2
_PROTECT_MATCHING, _CHECK_ASYNC = 1, 2
_WRITTEN, _FILE = 2, 4
# Devices write past the page tables, so what their drivers may have registered is not tracked.
_DRIVERS = (b"libcuda.so.1", b"libamdhip64.so", b"libibverbs.so.1")
_NOLOAD = os.RTLD_LAZY | getattr(os, "RTLD_NOLOAD", 4)


def partial_pages(address: int, length: int) -> list[tuple[int, int]]:
    """Return the parts of a memory range that share a page with other memory, as (offset, bytes).

    Versions do not cover them. Each is less than a page, so they are copied every time.
    """
    first, last = -address % mmap.PAGESIZE, (address + length) % mmap.PAGESIZE
    return [(0, first), (length - last, last)]


class _Range:
    """The tracking state of one object's memory."""

    __slots__ = ("address", "length", "owner", "sample", "served", "stamp", "start", "state", "stop")

    def __init__(self, owner: Any, address: int, length: int, gone: Callable[[Any], None]) -> None:
        self.owner = weakref.ref(owner, gone)
        self.address = address
        self.length = length
        (_, before), (after, _) = partial_pages(address, length)
        self.start = address + before
        self.stop = address + after
        self.sample = _sample(address, length)
        self.state = "seen"  # seen, tracked, or volatile: changes too often to be worth the page faults
        self.stamp = 0
        self.served = False


def _sample(address: int, length: int) -> bytes:
    # A few hundred bytes at an odd distance: most rewritten buffers are detected without page faults.
    return bytes((ctypes.c_ubyte * length).from_address(address)[:: length // 256 | 1])


def _driver_loaded() -> bool:
    libc = ctypes.CDLL(None)
    libc.dlopen.restype = ctypes.c_void_p
    for name in _DRIVERS:
        handle = libc.dlopen(name, _NOLOAD)
        if handle:
            libc.dlclose(ctypes.c_void_p(handle))
            return True
    return False


class DirtyTracker:
    """Version numbers for the memory of arrays: equal ones mean no write between, `partial_pages` aside.

    An object is tracked from the second question on, if a sample of it has not changed by then. The first write to each
    page of a tracked object costs a page fault. An object that was written before its version was used is not tracked
    again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ranges: dict[int, _Range] = {}
        self._ended: list[tuple[int, _Range]] = []
        self._stamps = itertools.count(1)
        self._current: set[int] = set()
        self._users = 0
        self._faults = self._pages = -1
        self._pid = 0

    def retain(self) -> None:
        """Count a user; the last one closes the descriptors."""
        with self._lock:
            self._users += 1

    def release(self) -> None:
        """Count one user less."""
        with self._lock:
            self._users -= 1
            if not self._users:
                self._reset()

    def is_current(self, stamp: int) -> bool:
        """Return whether a version may be returned again."""
        return stamp in self._current

    def stamp(self, owner: Any, address: int, length: int) -> int | None:
        """Return a version number for a memory range, its partial pages excluded; None where writes cannot be tracked.

        Args:
            owner: The object that owns the memory; it must be weakly referable.
            address: The first address.
            length: Bytes.
        """
        if length < SMALLEST or sys.platform != "linux" or _driver_loaded():
            return None
        with self._lock:
            if self._pid != os.getpid():  # after a fork the descriptors belong to the parent's memory
                self._reset()
                self._open()
            self._forget_dead()
            if self._faults < 0:
                return None
            known = self._ranges.get(id(owner))
            if known is None or known.owner() is not owner or (known.address, known.length) != (address, length):
                if known is not None:
                    self._forget(id(owner), known)
                self._note(owner, address, length)
                return None
            try:
                return self._decide(known)
            except OSError:  # mapped again, or memory that cannot be tracked
                self._current.discard(known.stamp)
                known.state = "volatile"
                return None

    def _note(self, owner: Any, address: int, length: int) -> None:
        key = id(owner)

        def gone(_: object) -> None:
            # Runs inside any thread's garbage collection: no lock may be taken here.
            self._ended.append((key, entry))

        entry = self._ranges[key] = _Range(owner, address, length, gone)

    def _decide(self, known: _Range) -> int | None:
        if known.state == "tracked":
            if not self._scan(known, _WRITTEN):
                known.served = True
                return known.stamp
            self._current.discard(known.stamp)
            if not known.served:
                self._untrack(known)
                known.state = "volatile"
        elif known.state == "seen":
            sample = _sample(known.address, known.length)
            if sample != known.sample or self._scan(known, _FILE, tracked=False):  # others may write to shared memory
                known.sample = sample
                return None
            arguments = struct.pack("4Q", known.start, known.stop - known.start, _MODE_WP, 0)
            fcntl.ioctl(self._faults, _REGISTER, bytearray(arguments))
            known.state = "tracked"
        if known.state == "volatile":
            return None
        self._scan(known, _WRITTEN, protect=True)
        known.stamp, known.served = next(self._stamps), False
        self._current.add(known.stamp)
        return known.stamp

    def _scan(self, known: _Range, category: int, protect: bool = False, tracked: bool = True) -> int:
        found = (ctypes.c_uint64 * 3)()
        one = 0 if protect else 1
        flags = (_CHECK_ASYNC if tracked else 0) | (_PROTECT_MATCHING if protect else 0)
        where = ctypes.addressof(found) * one
        numbers = (96, flags, known.start, known.stop, 0, where, one, one, 0, category, 0, category * one)
        return int(fcntl.ioctl(self._pages, _SCAN, bytearray(struct.pack("12Q", *numbers))))

    def _untrack(self, known: _Range) -> None:
        if known.state == "tracked":
            with contextlib.suppress(OSError):  # unmapped since
                fcntl.ioctl(self._faults, _UNREGISTER, struct.pack("2Q", known.start, known.stop - known.start))

    def _forget(self, key: int, known: _Range) -> None:
        self._untrack(known)
        self._current.discard(known.stamp)
        if self._ranges.get(key) is known:
            del self._ranges[key]

    def _forget_dead(self) -> None:
        while self._ended:
            self._forget(*self._ended.pop())

    def _open(self) -> None:
        self._pid = os.getpid()
        number = _SYSCALL.get(platform.machine())
        if number is None:
            return
        faults = ctypes.CDLL(None).syscall(number, os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY)
        if faults < 0:
            return
        try:
            fcntl.ioctl(faults, _API, bytearray(struct.pack("3Q", 0xAA, _WP_ASYNC, 0)))
            self._pages = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # an older kernel
            os.close(faults)
            return
        self._faults = faults

    def _reset(self) -> None:
        # Closing the descriptor ends all tracking.
        for fd in (self._faults, self._pages):
            if fd >= 0:
                os.close(fd)
        self._faults = self._pages = -1
        self._pid = 0
        self._ranges.clear()
        self._ended.clear()
        self._current.clear()

    def works(self) -> bool:
        """Try whether this kernel can track writes; for a tracker that is not in use."""
        with self._lock:
            self._open()
            opened = self._faults >= 0
            self._reset()
        return opened


def available() -> str:
    """Return why writes cannot be tracked here; empty if they can."""
    if sys.platform != "linux":
        return "needs Linux"
    if _driver_loaded():
        return "a device driver that may write to memory is loaded"
    return "" if DirtyTracker().works() else "needs Linux 6.7 or later with userfaultfd allowed"


TRACKER = DirtyTracker()
