"""The file behind a topic: the last handles that were published, and a table of the ends that are attached.

The file and its wake-up pipes outlive the processes. Each end holds a lock on its place in the table, which the kernel
drops with its process; the writers take turns by one more lock. A writer that is killed while it writes leaves an entry
that no reader has been told of, and the next writer uses it.

Layout, 64-bit words: magic, how many entries, count of publications, how many places of the table were used; at 64 the
table, 64 bytes per end: kind, cursor, whether it waits, process; then the entries: number, checksum, length, handle.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import struct
import threading
import time
from typing import Any
from urllib.parse import quote, unquote
from zlib import crc32

from xfer._shared import names
from xfer._shared.files import check_folder, is_own, open_or_create, open_own, open_pipe, typed_errors, user
from xfer._shared.lease import FLOCK, OFD, fcntl
from xfer.errors import (
    EndpointTakenError,
    HandleError,
    UnsupportedPlatformError,
    UntrustedFileError,
    WaitTimeoutError,
)

_MAGIC = 0x31435054_52454658
_ENDS, _END = 64, 64
_TABLE = 64
_ENTRIES = _TABLE + _ENDS * _END
_ENTRY = struct.Struct("<QII")
_ENTRY_BYTES = 704
_HANDLE_ROOM = _ENTRY_BYTES - _ENTRY.size
_LOOK_AGAIN = 0.05  # seconds
_INIT, _WRITING, _FIRST_END = 0, 1, 16  # bytes of the file whose locks mean something
MAGIC, KEEP, COUNT, PLACES = range(4)
KIND, CURSOR, WAITS, PID = range(4)
FREE, LATEST, EVERY, WRITER = range(4)


def path_of(name: str) -> str:
    """Return the path of a topic's file."""
    if not isinstance(name, str | bytes):
        raise ValueError(f"got the topic name {name!r}, want text")
    quoted = quote(name, safe="")
    if not quoted or len(quoted) > 180:
        raise ValueError(f"got the topic name {name[:40]!r} of {len(name)} characters, want 1 to 180 plain ones")
    return f"{names.DIRECTORY}/{names.TOPIC}{user()}-{quoted}"


def topics() -> list[tuple[str, str, bool]]:
    """Return (name, path, whether a process has an end) of each topic of this user."""
    start = f"{names.TOPIC}{user()}-"
    found = []
    for entry in sorted(os.listdir(names.DIRECTORY)):
        if entry.startswith(start) and "+" not in entry:
            path = f"{names.DIRECTORY}/{entry}"
            with contextlib.suppress(FileNotFoundError, UntrustedFileError):
                found.append((unquote(entry.removeprefix(start)), path, _in_use(path)))
    return found


def _in_use(path: str) -> bool:
    fd = open_own(path, os.O_RDONLY)
    try:
        return _locked(fd, _FIRST_END, _ENDS)
    finally:
        os.close(fd)


def remove(path: str) -> None:
    """Remove a topic's file and its wake-up pipes; ends that are attached go on among themselves."""
    folder, _, entry = path.rpartition("/")
    for other in os.listdir(folder):
        if (other == entry or other.startswith(entry + "+")) and is_own(f"{folder}/{other}"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{folder}/{other}")


def _lock(fd: int, kind: int, byte: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(kind, 0, byte, 1, 0))


def _locked(fd: int, first: int, count: int) -> bool:
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, FLOCK.pack(fcntl.F_WRLCK, 0, first, count, 0))
    kind: int = FLOCK.unpack(answer)[0]
    return kind != int(fcntl.F_UNLCK)


class Board:
    """One end's opening of a topic.

    Args:
        name: The topic.
        keep: How many publications are kept.
        kind: LATEST, EVERY or WRITER.

    Raises:
        ValueError: The topic is there and keeps another number.
        UntrustedFileError: What is at its place is not this user's alone.
        EndpointTakenError: It has 64 ends already.
        TooManyOpenFilesError: No descriptor is left.
        BudgetExceededError: There is no room for its file.
    """

    def __init__(self, name: str, keep: int, kind: int) -> None:
        if not OFD:
            raise UnsupportedPlatformError("topics need Linux")
        self.path: str = path_of(name)
        self.keep = keep
        self._fds: list[int] = []
        self._bells: dict[int, int] = {}
        self._barrier = threading.Lock()
        try:
            with typed_errors(f"the topic {self.path}"):
                check_folder(names.DIRECTORY)
                self._fd = self._open()
                self._map = mmap.mmap(self._fd, self._size)
                self.words: Any = memoryview(self._map).cast("Q")
                self._acquire(self._fd, _INIT, time.monotonic() + 5)
                try:
                    self._take_place(kind)
                finally:
                    _lock(self._fd, fcntl.F_UNLCK, _INIT)
        except BaseException:
            self.close()
            raise
        self.read_bell()
        if kind != WRITER:
            self.set(CURSOR, max(0, self.count - 1))

    def _open(self) -> int:
        """Open the file and write its head if this is the first end ever."""
        self._size = _ENTRIES + _ENTRY_BYTES * self.keep
        while True:
            fd = open_or_create(self.path)
            self._fds.append(fd)
            self._acquire(fd, _INIT, time.monotonic() + 5)
            if os.fstat(fd).st_nlink:
                break
            self._fds.remove(fd)  # it was removed meanwhile
            os.close(fd)
        try:
            head = os.pread(fd, 24, 0)
            magic, keep, _ = struct.unpack("<QQQ", head) if len(head) == 24 else (0, 0, 0)
            if magic == 0:  # it is new, or its first user was killed before it wrote the head
                os.posix_fallocate(fd, 0, self._size)
                os.pwrite(fd, struct.pack("<QQQ", _MAGIC, self.keep, 0), 0)
            elif magic != _MAGIC:
                raise HandleError(f"{self.path} is not a topic of this version of xfer")
            elif keep != self.keep:
                raise ValueError(
                    f"the topic keeps {keep} publications, not {self.keep}: use the same number, or remove it"
                )
            elif os.fstat(fd).st_size < self._size:
                raise HandleError(f"{self.path} was cut: remove it")
            return fd
        finally:
            _lock(fd, fcntl.F_UNLCK, _INIT)

    @staticmethod
    def _acquire(fd: int, byte: int, end: float | None) -> None:
        pause = 0.00002
        while True:
            try:
                _lock(fd, fcntl.F_WRLCK, byte)
                return
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            if end is not None and time.monotonic() > end:
                raise WaitTimeoutError("another writer of the topic is stopped in the middle of a publication")
            time.sleep(pause)
            pause = min(2 * pause, 0.002)

    def _take_place(self, kind: int) -> None:
        planted: UntrustedFileError | None = None
        for end in range(_ENDS):
            try:
                _lock(self._fd, fcntl.F_WRLCK, _FIRST_END + end)
            except OSError:
                continue
            try:
                self.bell: int = self._bell(end)
            except UntrustedFileError as error:  # another user was there first: use the next place
                planted = error
                _lock(self._fd, fcntl.F_UNLCK, _FIRST_END + end)
                continue
            self.end: int = end
            for word, value in ((KIND, FREE), (WAITS, 0), (PID, os.getpid()), (CURSOR, self.count), (KIND, kind)):
                self.set(word, value)
            self.words[PLACES] = max(self.words[PLACES], end + 1)
            return
        raise planted or EndpointTakenError(f"the topic has {_ENDS} ends already: close some")

    def _bell(self, end: int) -> int:
        """Open the wake-up pipe of an end; it exists as long as the topic."""
        if end not in self._bells:
            fd = open_pipe(f"{self.path}+{end}")
            self._fds.append(fd)
            self._bells[end] = fd
        return self._bells[end]

    @property
    def removed(self) -> bool:
        """Whether the file has no name any more."""
        return os.fstat(self._fd).st_nlink == 0

    @property
    def count(self) -> int:
        """How many publications there were."""
        count: int = self.words[COUNT]
        return count

    def get(self, word: int, end: int | None = None) -> int:
        """Return a word of this end's place in the table, or another's."""
        value: int = self.words[(_TABLE + _END * (self.end if end is None else end)) // 8 + word]
        return value

    def set(self, word: int, value: int) -> None:
        """Write a word of this end's place."""
        self.words[(_TABLE + _END * self.end) // 8 + word] = value

    def fence(self) -> None:
        """Order the stores before against the loads after."""
        with self._barrier:
            pass

    @contextlib.contextmanager
    def writing(self, end: float | None) -> Any:
        """Hold the writers' turn."""
        self._acquire(self._fd, _WRITING, end)
        try:
            yield
        finally:
            _lock(self._fd, fcntl.F_UNLCK, _WRITING)

    def slow_readers(self) -> list[int]:
        """Return the living ends that want every publication and still need the entry that would be overwritten."""
        count = self.count
        return [
            end
            for end in range(min(self.words[PLACES], _ENDS))
            if self.get(KIND, end) == EVERY
            and count - self.get(CURSOR, end) >= self.keep
            and _locked(self._fd, _FIRST_END + end, 1)
        ]

    def write(self, handle: bytes) -> int:
        """Publish a handle; the caller has the writers' turn. Return its number, from 1."""
        number = self.count + 1 & (1 << 64) - 1
        start = _ENTRIES + _ENTRY_BYTES * ((number - 1) % self.keep)
        entry = _ENTRY.pack(number, crc32(number.to_bytes(8, "little") + handle), len(handle)) + handle
        self._map[start : start + len(entry)] = entry
        self.fence()
        self.words[COUNT] = number
        self.fence()
        return number

    def read(self, number: int) -> bytes | None:
        """Return the handle of a publication, or None if it was overwritten."""
        start = _ENTRIES + _ENTRY_BYTES * ((number - 1) % self.keep)
        found, check, length = _ENTRY.unpack_from(self._map, start)
        handle = self._map[start + _ENTRY.size : start + _ENTRY.size + min(length, _HANDLE_ROOM)]
        if found != number or crc32(number.to_bytes(8, "little") + handle) != check:
            return None
        return handle

    def wake(self, *kinds: int) -> None:
        """Wake the ends of these kinds that wait."""
        for end in range(min(self.words[PLACES], _ENDS)):
            if self.get(WAITS, end) and self.get(KIND, end) in kinds:
                with contextlib.suppress(OSError):
                    os.write(self._bell(end), b"\0")

    def wake_own(self) -> None:
        """Wake this end."""
        with contextlib.suppress(OSError):
            os.write(self.bell, b"\0")

    def read_bell(self) -> None:
        """Empty this end's wake-up pipe."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.bell, 4096)

    def sleep(self, seconds: float | None, watch: list[int]) -> None:
        """Sleep until this end is woken, one of these ends' processes ends, or the time is up."""
        poll = select.poll()
        poll.register(self.bell, select.POLLIN)
        pidfds = []
        try:
            for end in watch:
                try:
                    pidfds.append(os.pidfd_open(self.get(PID, end)))
                    poll.register(pidfds[-1], select.POLLIN)
                except ProcessLookupError:
                    return
                except (OSError, OverflowError):  # no descriptor is left to watch it by, so look again soon
                    seconds = _LOOK_AGAIN if seconds is None else min(seconds, _LOOK_AGAIN)
                if not _locked(self._fd, _FIRST_END + end, 1):  # it ended before, and its number may be another's now
                    return
            poll.poll(None if seconds is None else seconds * 1000)
            self.read_bell()
        finally:
            for fd in pidfds:
                os.close(fd)

    def close(self) -> None:
        """Leave the topic."""
        if hasattr(self, "words"):
            if hasattr(self, "end"):
                self.set(KIND, FREE)
            self.words.release()
            self._map.close()
            del self.words
        self.drop()

    def drop(self) -> None:
        """Close the descriptors and say nothing, as in a forked child."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
