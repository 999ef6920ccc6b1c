"""The shared memory behind a channel: a ring of messages with counters and two bells; knows no arrays and no policy.

One writer, one taker. `head` counts messages written, `tail` messages taken; each is stored by one side only. A second
small ring goes the other way and gives back slots (see `slab.py`). On x86 stores are seen in the order they were
made, so a side may look at the counters without asking the kernel; elsewhere this Python side rings for each message.

Layout, little-endian: counters 64 bytes apart, at 1024 the note about the slab, at 1536 the slots given back, then the
entries of 640 bytes. An entry is length, slot (or HANDLE), bytes of data, dimensions, number of the slab, description.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import platform
import select
import struct
import threading
import time
from typing import NamedTuple
from zlib import crc32

from xfer._channel.layout import (
    CAPACITY,
    ENTRY,
    HEAD,
    MESSAGE,
    NOTE_AT,
    RECEIVER_CLOSED,
    RECEIVER_PID,
    RECEIVER_WAITS,
    RETURNS_AT,
    SENDER_CLOSED,
    SENDER_PID,
    SENDER_WAITS,
    TAIL,
)
from xfer._shared.lease import FLOCK, OFD, fcntl
from xfer.errors import HandleError, ProducerGoneError, UnsupportedPlatformError

ORDERED_STORES = platform.machine() in {"x86_64", "AMD64", "i686"}
HANDLE = 0xFFFFFFFF
_NOTE = struct.Struct("<IIQI")
_MESSAGE = struct.Struct(MESSAGE)
MESSAGE_ROOM = ENTRY - _MESSAGE.size
_TOKEN = struct.Struct("<4sIIIIIIQ")
_TOKEN_MAGIC = b"XFC2"
# A wake-up can be missed only if a store is delayed past a system call; looking again this often makes that harmless.
_LOOK_AGAIN_MS = 50


class Message(NamedTuple):
    """What an entry says: a whole handle, or how the array in a slot is to be read."""

    slot: int
    nbytes: int
    ndim: int
    epoch: int
    meta: bytes


def _layout(capacity: int) -> tuple[int, int]:
    """Return how many slots fit on their way back, and where the entries start."""
    returns = 1 << (2 * capacity - 1).bit_length()
    return returns, -(-(RETURNS_AT + 8 * returns) // 64) * 64


class RingOwner:
    """The descriptors of a channel in the process that made it; anyone with the token opens them from there."""

    def __init__(self, capacity: int) -> None:
        if not OFD:
            raise UnsupportedPlatformError("channels need Linux: memfd, pidfd and /proc")
        self.fds = [os.memfd_create("xfer-channel", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)]
        try:
            size = _layout(capacity)[1] + ENTRY * capacity
            os.ftruncate(self.fds[0], size)
            fcntl.fcntl(self.fds[0], fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            with mmap.mmap(self.fds[0], size) as memory:
                memory[8 * CAPACITY : 8 * CAPACITY + 8] = struct.pack("=Q", capacity)
            for _ in range(2):
                self.fds += os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except BaseException:
            self.close()
            raise
        body = _TOKEN.pack(_TOKEN_MAGIC, os.getpid(), *self.fds, os.fstat(self.fds[0]).st_ino)
        self.token = body + struct.pack("<I", crc32(body))

    def close(self) -> None:
        """Close the descriptors; ends that are attached have their own."""
        for fd in self.fds:
            with contextlib.suppress(OSError):
                os.close(fd)
        self.fds = []


class Ring:
    """One end's own opening of a channel's memory and bells."""

    def __init__(self, token: bytes, sending: bool) -> None:
        """Open the channel that a token names and say that this process holds this end.

        Raises:
            HandleError: The token is damaged.
            ProducerGoneError: The process that made the channel has ended or closed it.
            BlockingIOError: Another opening holds this end.
        """
        if len(token) != _TOKEN.size + 4 or struct.unpack("<I", token[-4:])[0] != crc32(token[:-4]):
            raise HandleError("these bytes are no intact end of a channel")
        magic, pid, memory, to_receiver, to_receiver_in, to_sender, to_sender_in, inode = _TOKEN.unpack(token[:-4])
        if magic != _TOKEN_MAGIC:
            raise HandleError(f"the channel token is of version {magic!r}, this xfer reads {_TOKEN_MAGIC!r}")
        self.sending = sending
        self.fds: list[int] = []
        try:
            self.memory_fd = self._open(pid, memory, os.O_RDWR)
            status = os.fstat(self.memory_fd)
            if status.st_ino != inode:
                raise ProducerGoneError(f"the channel made by process {pid} is closed")
            fcntl.fcntl(self.memory_fd, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_WRLCK, 0, 0 if sending else 1, 1, 0))
            self.bell = self._open(pid, to_sender if sending else to_receiver, os.O_RDONLY | os.O_NONBLOCK)
            self.peer_bell = self._open(pid, to_receiver_in if sending else to_sender_in, os.O_WRONLY | os.O_NONBLOCK)
            self.map = mmap.mmap(self.memory_fd, status.st_size)
        except BaseException:
            self.close()
            raise
        self.words = memoryview(self.map).cast("Q")
        self.capacity = self.words[CAPACITY]
        self.returns, self.start = _layout(self.capacity)
        self._barrier = threading.Lock(), threading.Lock()
        self.peer_fd = -1
        self.poll = select.poll()
        self.poll.register(self.bell, select.POLLIN)
        self._mine, self._theirs = (SENDER_WAITS, RECEIVER_WAITS) if sending else (RECEIVER_WAITS, SENDER_WAITS)
        self.words[SENDER_PID if sending else RECEIVER_PID] = os.getpid()
        self.ring()

    def _open(self, pid: int, fd: int, flags: int) -> int:
        try:
            own = os.open(f"/proc/{pid}/fd/{fd}", flags | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENFILE, errno.EMFILE):  # ours to handle, says nothing about the channel
                raise
            raise ProducerGoneError(f"the channel made by process {pid} cannot be opened: {error.strerror}") from error
        self.fds.append(own)
        return own

    def write(self, meta: bytes, slot: int = HANDLE, nbytes: int = 0, ndim: int = 0, epoch: int = 0) -> None:
        """Add a message, of a handle or of an array in a slot; there must be room."""
        words = self.words
        head = words[HEAD]
        start = self.start + ENTRY * (head % self.capacity)
        message = _MESSAGE.pack(len(meta), slot, nbytes, ndim, epoch) + meta
        self.map[start : start + len(message)] = message
        self.fence()
        words[HEAD] = head + 1
        self.fence()
        self.ring_if_waiting()

    def peek(self) -> Message:
        """Return the oldest message without taking it; there must be one."""
        start = self.start + ENTRY * (self.words[TAIL] % self.capacity)
        length, slot, nbytes, ndim, epoch = _MESSAGE.unpack_from(self.map, start)
        start += _MESSAGE.size
        return Message(slot, nbytes, ndim, epoch, self.map[start : start + min(length, MESSAGE_ROOM)])

    def took(self, tail: int) -> None:
        """Say that the message number `tail` is taken."""
        words = self.words
        words[TAIL] = tail + 1
        # A sender that sleeps before a full ring is woken at half of it, not once for each message.
        if not ORDERED_STORES or (words[SENDER_WAITS] and 2 * (words[HEAD] - tail - 1) <= self.capacity):
            self.ring()

    def note_slab(self, stride: int, slots: int, epoch: int, handle: bytes) -> None:
        """Leave word where the slots lie; every message of the slab before must have been taken."""
        note = _NOTE.pack(stride, slots, epoch, len(handle)) + handle
        self.map[NOTE_AT : NOTE_AT + len(note)] = note

    def slab(self) -> tuple[int, int, int, bytes]:
        """Return bytes per slot, number of slots, number of the slab, and its handle."""
        stride, slots, epoch, length = _NOTE.unpack_from(self.map, NOTE_AT)
        start = NOTE_AT + _NOTE.size
        return stride, slots, epoch, self.map[start : start + min(length, 256)]

    def fence(self) -> None:
        """Let the stores before be seen before those after: a lock is an atomic operation."""
        for lock in self._barrier:
            with lock:
                pass

    def ring(self) -> None:
        """Wake the other end."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # a full pipe wakes it just as well
            os.write(self.peer_bell, b"\0")

    def ring_if_waiting(self) -> None:
        """Wake the other end if it sleeps, or always where memory order needs it."""
        if not ORDERED_STORES or self.words[self._theirs]:
            self.ring()

    def wait(self, word: int, value: int, seconds: float | None) -> None:
        """Sleep until a counter differs from `value`, the other end's process ends or closes, or the time is up."""
        words = self.words
        words[self._mine] = 1
        try:
            if words[word] != value or self.peer_closed():
                return
            self._watch_peer()
            limit = _LOOK_AGAIN_MS if seconds is None else max(0, min(_LOOK_AGAIN_MS, int(seconds * 1000) + 1))
            for fd, _ in self.poll.poll(limit):
                if fd == self.bell:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self.bell, 4096)
        finally:
            words[self._mine] = 0

    def spin(self, word: int, value: int, seconds: float) -> bool:
        """Look at a counter for a short while without sleeping; tell whether it changed."""
        if not ORDERED_STORES:
            return False
        words, clock = self.words, time.perf_counter
        end = clock() + seconds
        while words[word] == value:
            if clock() > end:
                return False
        return True

    def peer_closed(self) -> bool:
        """Tell whether the other end said good-bye."""
        return bool(self.words[RECEIVER_CLOSED if self.sending else SENDER_CLOSED])

    def peer_dead(self) -> bool:
        """Tell whether the other end was there and its process has ended."""
        if not self._watch_peer():
            return False
        if self.peer_fd == -2:
            return True
        probe = select.poll()
        probe.register(self.peer_fd, select.POLLIN)
        return bool(probe.poll(0))

    def _watch_peer(self) -> bool:
        if self.peer_fd == -1:
            pid = self.words[RECEIVER_PID if self.sending else SENDER_PID]
            if not pid:
                return False
            try:
                self.peer_fd = os.pidfd_open(pid)
            except ProcessLookupError:
                self.peer_fd = -2
                return True
            self.fds.append(self.peer_fd)
            # The number could have been given to a new process meanwhile; the peer's lock tells.
            question = FLOCK.pack(fcntl.F_WRLCK, 0, 1 if self.sending else 0, 1, 0)
            if FLOCK.unpack(fcntl.fcntl(self.memory_fd, fcntl.F_OFD_GETLK, question))[0] == fcntl.F_UNLCK:
                self.peer_fd = -2
                return True
            self.poll.register(self.peer_fd, select.POLLIN)
        return True

    def say_closed(self) -> None:
        """Tell the other end that this one is done."""
        self.words[SENDER_CLOSED if self.sending else RECEIVER_CLOSED] = 1
        self.ring()

    def close(self) -> None:
        """Close this end's openings."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []
        if hasattr(self, "words"):
            self.words.release()
            self.map.close()
