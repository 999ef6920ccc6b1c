"""Results that outlive the worker that made them: at its normal exit a worker leaves them to the process it works for.

Each process has a mailbox, a Unix socket by its process number. A worker that exits sends the descriptors of the
segments whose arrays wait to be taken over; the kernel keeps them until the other process looks, which it does when a
handle's producer is gone. Nothing has a name in a file system, and no process stays behind. Both sides check that the
other is of the same user.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import stat
import struct
import sys
import threading
import weakref
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from xfer._shared.files import check_owner, user
from xfer._shared.segment import ID, MAGIC, MAGIC_VALUE, SLOTS, START, WORDS, Segment

_CREDENTIALS = struct.Struct("3i")  # process, user, group
_AT_ONCE = 100  # segments in a message; the kernel takes 253 descriptors
_MARK = b"XFB1"
_SEND_FOR = 1.0  # seconds


class Testator(Protocol):
    """A pool, as far as it matters here."""

    def bequeath(self) -> list[Segment]:
        """Return the segments with arrays that wait to be taken over, and make all their other arrays stale."""


class Estate(NamedTuple):
    """A segment of a worker that has returned."""

    segment: int
    ledger: int
    waiting: set[int]


class Heir:
    """This process's mailbox, and what came in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._inode = 0
        self._pending: list[socket.socket] = []
        self._estates: dict[int, Estate] = {}
        self.open()

    def open(self) -> None:
        """Open the mailbox; without one, results end with their worker."""
        if sys.platform != "linux":
            return
        try:
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        except OSError:
            return
        try:
            made.bind(_address(os.getpid()))
            made.listen(4096)
        except OSError:  # another has this name: no one sends to it, since its owner is checked
            made.close()
            return
        self._socket, self._inode = made, os.fstat(made.fileno()).st_ino

    def find(self, segment: int) -> Estate | None:
        """Return what a worker has left of a segment."""
        with self._lock:
            if segment not in self._estates:
                self._collect()
            return self._estates.get(segment)

    def took(self, segment: int, stamp: int) -> None:
        """Give the memory back once every array of a segment was taken over."""
        with self._lock:
            estate = self._estates.get(segment)
            if estate is not None:
                estate.waiting.discard(stamp)
                if not estate.waiting:
                    del self._estates[segment]
                    os.close(estate.segment)
                    os.close(estate.ledger)

    def after_fork_in_child(self) -> None:
        """The parent's mailbox and what came in it stay the parent's."""
        self._lock = threading.Lock()
        for estate in self._estates.values():
            os.close(estate.segment)
            os.close(estate.ledger)
        for one in (*self._pending, *((self._socket,) if self._is_ours() and self._socket else ())):
            one.close()
        self._estates, self._pending, self._socket = {}, [], None
        self.open()

    def _is_ours(self) -> bool:
        """Return whether the mailbox's descriptor was not closed and used again by other code."""
        try:
            return self._socket is not None and os.fstat(self._socket.fileno()).st_ino == self._inode
        except OSError:
            return False

    def _collect(self) -> None:
        """Take everything that waits in the mailbox."""
        if self._socket is None or not self._is_ours():
            return
        with contextlib.suppress(OSError):
            while True:
                one, _ = self._socket.accept()
                one.setblocking(False)
                if _peer(one)[1] == user():
                    self._pending.append(one)
                else:
                    one.close()
        self._pending = [one for one in self._pending if self._receive(one)]

    def _receive(self, one: socket.socket) -> bool:
        """Take what a connection brings; return whether more may come."""
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(one, len(_MARK), 2 * _AT_ONCE, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return True
            except OSError:
                data, fds = b"", []
            if data != _MARK or len(fds) % 2:
                for fd in fds:
                    os.close(fd)
                one.close()
                return False
            for segment, ledger in zip(fds[::2], fds[1::2], strict=True):
                self._accept(segment, ledger)

    def _accept(self, segment: int, ledger: int) -> None:
        try:
            number, waiting = _look_into(segment)
            check_owner(ledger, "the ledger that a worker left")
        except (OSError, ValueError, struct.error):
            number, waiting = 0, set()
        if not waiting or number in self._estates:
            os.close(segment)
            os.close(ledger)
        else:
            self._estates[number] = Estate(segment, ledger, waiting)


def _look_into(segment: int) -> tuple[int, set[int]]:
    """Return a segment's number, and the stamps of the arrays in it.

    Raises:
        ValueError: It is no segment.
        OSError: It is another user's, or cannot be read.
    """
    check_owner(segment, "the segment that a worker left")
    status = os.fstat(segment)
    words = struct.unpack(f"<{WORDS}Q", os.pread(segment, 8 * WORDS, 0)) if stat.S_ISREG(status.st_mode) else ()
    if not words or words[MAGIC] != MAGIC_VALUE or words[START] > status.st_size:
        raise ValueError("this is no segment")
    table = os.pread(segment, min(16 * words[SLOTS], words[START] - 8 * WORDS), 8 * WORDS)
    return words[ID], {stamp for stamp, _ in struct.iter_unpack("<QQ", table[: len(table) // 16 * 16]) if stamp}


_testators: weakref.WeakSet[Testator] = weakref.WeakSet()
_registered = 0  # the process that leaves its results at its exit


def leave_at_exit(pool: Testator) -> None:
    """Have a pool's results left to another process when this one exits normally.

    Args:
        pool: The pool.
    """
    global _registered
    _testators.add(pool)
    if _registered != os.getpid():
        _registered = os.getpid()
        atexit.register(_leave)
        util = sys.modules.get("multiprocessing.util")
        if util is not None:  # its forked workers end without the functions of atexit
            util.Finalize(None, _leave, exitpriority=0)


def _leave() -> None:
    segments = [segment for pool in list(_testators) for segment in pool.bequeath()]
    if not segments:
        return
    for pid in _ancestors():
        if _send(pid, segments):
            break
    for segment in segments:
        segment.close(retired=False)


def _ancestors() -> Iterable[int]:
    """Return the processes that this one may work for."""
    process = sys.modules.get("multiprocessing.process")
    parent = process.parent_process() if process is not None else None
    return dict.fromkeys([*([parent.pid] if parent is not None else []), os.getppid()])


def _send(pid: int, segments: list[Segment]) -> bool:
    """Send segments and their ledgers to a process of this user; return False if it has no mailbox."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.settimeout(_SEND_FOR)
        try:
            made.connect(_address(pid))
            if _peer(made)[:2] != (pid, user()):
                return False
            for start in range(0, len(segments), _AT_ONCE):
                pairs = [
                    (one.fd, one.ledger.fd) for one in segments[start : start + _AT_ONCE] if one.ledger is not None
                ]
                socket.send_fds(made, [_MARK], [fd for pair in pairs for fd in pair])
        except OSError:
            return False
    return True


def _address(pid: int) -> str:
    return f"\0xfer-results-{user()}-{pid}"


def _peer(one: socket.socket) -> tuple[int, ...]:
    return _CREDENTIALS.unpack(one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))


HEIR = Heir()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=HEIR.after_fork_in_child)
