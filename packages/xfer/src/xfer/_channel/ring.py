"""The shared memory behind a channel: a ring of messages with counters, and a wake-up pipe for each end.

One end writes, the other takes. `head` counts messages written, `tail` messages taken; each is stored by one side only.
A second small ring goes the other way and returns slots (see `slab.py`). On x86 stores are seen in the order they were
made, so a side may read the counters without a system call; elsewhere this side wakes the other for each message.

Layout, little-endian: the counters of `layout.py`, the note about the slab, the slots returned, then the entries. An
entry is length, slot (or HANDLE), bytes of data, dimensions, number of the slab, description.

The holder of an end is known by a lock that the kernel drops with its process, so a new holder takes over at once.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import select
import stat
import struct
import threading
import time
from typing import Any, NamedTuple
from zlib import crc32

from xfer._channel.layout import (
    CAPACITY,
    ENTRY,
    EXPECTED,
    HEAD,
    HOLDERS,
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
    WAKE_AT_ONCE,
)
from xfer._channel.watch import Watch
from xfer._shared.files import typed_errors
from xfer._shared.lease import FLOCK, OFD, fcntl
from xfer._shared.memory import new_memory, open_by_number
from xfer.errors import HandleError, ProducerGoneError, UnsupportedPlatformError

ORDERED_STORES = platform.machine() in {"x86_64", "AMD64", "i686"}
HANDLE = 0xFFFFFFFF
COUNT = (1 << 64) - 1  # counters start again after this
_NOTE = struct.Struct("<IIQI")
_MESSAGE = struct.Struct(MESSAGE)
MESSAGE_ROOM = ENTRY - _MESSAGE.size
_TOKEN = struct.Struct("<4sIIIIIIQQQ")
_TOKEN_MAGIC = b"XFC3"
# Where stores may be delayed past a system call, or no descriptor is left to watch the other end by, a wake-up can be
# missed; looking again this often makes it harmless.
_LOOK_AGAIN = 0.05
_TAKEN_OVER = 0.1  # seconds to wait for a lock that the other end holds for a moment


class Message(NamedTuple):
    """What an entry holds: a whole handle, or how the array in a slot is to be read."""

    slot: int
    nbytes: int
    ndim: int
    epoch: int
    meta: bytes


class Token(NamedTuple):
    """The bytes of an end: where the channel's descriptors are."""

    pid: int
    memory: int
    to_receiver: int
    to_receiver_in: int
    to_sender: int
    to_sender_in: int
    inode: int
    receiver_inode: int
    sender_inode: int

    @classmethod
    def parse(cls, raw: bytes) -> Token:
        """Read a token.

        Raises:
            HandleError: The bytes are damaged.
        """
        if len(raw) != _TOKEN.size + 4 or struct.unpack("<I", raw[-4:])[0] != crc32(raw[:-4]):
            raise HandleError("these bytes are not an intact end of a channel")
        magic, *rest = _TOKEN.unpack(raw[:-4])
        if magic != _TOKEN_MAGIC:
            raise HandleError(f"the channel token is of version {magic!r}, this xfer reads {_TOKEN_MAGIC!r}")
        return cls(*rest)

    def __bytes__(self) -> bytes:
        body = _TOKEN.pack(_TOKEN_MAGIC, *self)
        return body + struct.pack("<I", crc32(body))


def _layout(capacity: int) -> tuple[int, int]:
    """Return how many slots fit on their way back, and where the entries start."""
    returns = 1 << (2 * capacity - 1).bit_length()
    return returns, -(-(RETURNS_AT + 8 * returns) // 64) * 64


class RingOwner:
    """The descriptors of a channel in the process that made it; a process with the token opens them from there."""

    def __init__(self, capacity: int) -> None:
        if not OFD:
            raise UnsupportedPlatformError("channels need Linux: memfd, pidfd and /proc")
        self.fds: list[int] = []
        try:
            with typed_errors("a channel"):
                self._make(capacity)
        except BaseException:
            self.close()
            raise
        inodes = [os.fstat(self.fds[index]).st_ino for index in (0, 1, 3)]
        self.token = bytes(Token(os.getpid(), *self.fds, *inodes))

    def _make(self, capacity: int) -> None:
        self.fds.append(new_memory("xfer-channel"))
        size = _layout(capacity)[1] + ENTRY * capacity
        os.ftruncate(self.fds[0], size)
        fcntl.fcntl(self.fds[0], fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        with mmap.mmap(self.fds[0], size) as memory:
            memory[8 * CAPACITY : 8 * CAPACITY + 8] = struct.pack("=Q", capacity)
        for _ in range(2):
            self.fds += os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def close(self) -> None:
        """Close the descriptors; ends that are attached have their own."""
        for fd in self.fds:
            with contextlib.suppress(OSError):
                os.close(fd)
        self.fds = []


def announce(raw: bytes, sending: bool) -> None:
    """Name this process as the one that is to attach an end, and wake the other end.

    Args:
        raw: The channel's token.
        sending: Which end.

    Raises:
        XferError: The channel is gone, or the token is damaged.
    """
    token = Token.parse(raw)
    word = (SENDER_PID if sending else RECEIVER_PID) + EXPECTED
    bell = (token.to_receiver_in, token.receiver_inode) if sending else (token.to_sender_in, token.sender_inode)
    with contextlib.ExitStack() as opened, typed_errors("a channel"):
        memory = open_by_number(token.pid, token.memory, token.inode, os.O_RDWR, stat.S_ISREG)
        opened.callback(os.close, memory)
        os.pwrite(memory, os.getpid().to_bytes(8, "little"), 8 * word)
        pipe = open_by_number(token.pid, *bell, os.O_WRONLY, stat.S_ISFIFO)
        opened.callback(os.close, pipe)
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes it as well
            os.write(pipe, b"\0")


class Ring:
    """One end's own opening of a channel's memory and wake-up pipes."""

    def __init__(self, raw: bytes, sending: bool) -> None:
        """Open the channel that a token names, as the holder of this end.

        Raises:
            HandleError: The token is damaged.
            ProducerGoneError: The process that made the channel has ended or closed it.
            BlockingIOError: Another opening holds this end.
        """
        token = self._token = Token.parse(raw)
        self.sending = sending
        self.fds: list[int] = []
        mine = (token.to_sender, token.to_sender_in, token.sender_inode)
        theirs = (token.to_receiver, token.to_receiver_in, token.receiver_inode)
        if not sending:
            mine, theirs = theirs, mine
        try:
            with typed_errors(f"the channel made by process {token.pid}"):
                self.memory_fd = self._open(token.memory, token.inode, os.O_RDWR, stat.S_ISREG)
                self._check_memory()
                self._hold()
                self.bell = self._open(mine[0], mine[2], os.O_RDONLY, stat.S_ISFIFO)
                self._own_bell = self._open(mine[1], mine[2], os.O_WRONLY, stat.S_ISFIFO)
                self.peer_bell = self._open(theirs[1], theirs[2], os.O_WRONLY, stat.S_ISFIFO)
                self.map = mmap.mmap(self.memory_fd, os.fstat(self.memory_fd).st_size)
                self.poll = select.epoll()
                self.poll.register(self.bell, select.EPOLLIN)
            self._watch = Watch(self.poll)
        except BaseException:
            self.close()
            raise
        self.words = memoryview(self.map).cast("Q")
        self._barrier = threading.Lock(), threading.Lock()
        self.named = 0  # the process that is to attach the other end, where the caller knows it
        self._armed = False
        self._mine, self._theirs = (SENDER_WAITS, RECEIVER_WAITS) if sending else (RECEIVER_WAITS, SENDER_WAITS)
        self._peer_pid = RECEIVER_PID if sending else SENDER_PID
        own = SENDER_PID if sending else RECEIVER_PID
        self.successor = bool(self.words[own])  # whether another holder was here before
        self.words[own] = os.getpid()
        self.words[own + HOLDERS] = self.words[own + HOLDERS] + 1 & COUNT  # a process number may come again
        self.words[SENDER_CLOSED if sending else RECEIVER_CLOSED] = 0
        self.ring()

    def _open(self, fd: int, inode: int, flags: int, is_kind: Any) -> int:
        try:
            own = open_by_number(self._token.pid, fd, inode, flags, is_kind)
        except ProducerGoneError as error:
            raise ProducerGoneError(f"the channel made by process {self._token.pid} is closed: {error}") from error
        self.fds.append(own)
        return own

    def _check_memory(self) -> None:
        """Check that the memory is a channel's, and note where everything lies in it."""
        size = os.fstat(self.memory_fd).st_size
        self.capacity = int.from_bytes(os.pread(self.memory_fd, 8, 8 * CAPACITY), "little")
        if 0 < self.capacity <= size // ENTRY:
            self.returns, self.start = _layout(self.capacity)
            if self.start + ENTRY * self.capacity == size:
                return
        raise HandleError("the memory behind these bytes is not that of a channel")

    def _hold(self) -> None:
        """Take the lock of this end; wait a moment for the other end, which takes it to empty the ring."""
        end = time.monotonic() + _TAKEN_OVER
        while True:
            try:
                self._lock(fcntl.F_WRLCK, mine=True)
                return
            except BlockingIOError:
                if time.monotonic() > end or self._holder_lives():
                    raise
                time.sleep(0.001)

    def _lock(self, kind: int, mine: bool) -> None:
        byte = 0 if self.sending == mine else 1
        fcntl.fcntl(self.memory_fd, fcntl.F_OFD_SETLK, FLOCK.pack(kind, 0, byte, 1, 0))

    def _holder_lives(self) -> bool:
        # The process number of this end's last holder; the ring is not mapped yet.
        word = 8 * (SENDER_PID if self.sending else RECEIVER_PID)
        pid = int.from_bytes(os.pread(self.memory_fd, 8, word), "little")
        return bool(pid) and os.path.isdir(f"/proc/{pid}")

    def reachable(self) -> bool:
        """Return whether an end can still be attached by its token."""
        try:
            return os.stat(f"/proc/{self._token.pid}/fd/{self._token.memory}").st_ino == self._token.inode
        except OSError:
            return False

    def write(self, meta: bytes, slot: int = HANDLE, nbytes: int = 0, ndim: int = 0, epoch: int = 0) -> None:
        """Add a message, of a handle or of an array in a slot; there must be room."""
        words = self.words
        head = words[HEAD]
        start = self.start + ENTRY * (head % self.capacity)
        message = _MESSAGE.pack(len(meta), slot, nbytes, ndim, epoch) + meta
        self.map[start : start + len(message)] = message
        self.fence()
        words[HEAD] = head + 1 & COUNT
        self.fence()
        self.ring_if_waiting()

    def peek(self) -> Message:
        """Return the oldest message without taking it; there must be one."""
        start = self.start + ENTRY * (self.words[TAIL] % self.capacity)
        length, slot, nbytes, ndim, epoch = _MESSAGE.unpack_from(self.map, start)
        start += _MESSAGE.size
        return Message(slot, nbytes, ndim, epoch, self.map[start : start + min(length, MESSAGE_ROOM)])

    def took(self, tail: int) -> None:
        """Publish that the message number `tail` is taken."""
        words = self.words
        words[TAIL] = tail + 1 & COUNT
        self.fence()
        # A sender that waits for room is woken at half of the ring, not once for each message, unless it asks for more.
        waits = words[SENDER_WAITS]
        half = 2 * (words[HEAD] - tail - 1) <= self.capacity
        if not ORDERED_STORES or waits == WAKE_AT_ONCE or (waits and half):
            self.ring()

    def note_slab(self, stride: int, slots: int, epoch: int, handle: bytes) -> None:
        """Write where the slots lie; every message of the slab before must have been taken."""
        note = _NOTE.pack(stride, slots, epoch, len(handle)) + handle
        self.map[NOTE_AT : NOTE_AT + len(note)] = note

    def slab(self) -> tuple[int, int, int, bytes]:
        """Return bytes per slot, number of slots, number of the slab, and its handle."""
        stride, slots, epoch, length = _NOTE.unpack_from(self.map, NOTE_AT)
        start = NOTE_AT + _NOTE.size
        return stride, slots, epoch, self.map[start : start + min(length, 256)]

    def fence(self) -> None:
        """Order the stores before against those after: a lock is an atomic operation."""
        for lock in self._barrier:
            with lock:
                pass

    def ring(self) -> None:
        """Wake the other end."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # a full pipe wakes it as well
            os.write(self.peer_bell, b"\0")

    def ring_if_waiting(self) -> None:
        """Wake the other end if it waits, or always where memory order needs it."""
        if not ORDERED_STORES or self.words[self._theirs]:
            self.ring()

    def ring_own(self) -> None:
        """Wake this end."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._own_bell, b"\0")

    def arm(self) -> int:
        """Let the other end wake this one for each message from now on; return a descriptor to select on."""
        if not self._armed:
            self._armed = True
            self.words[self._mine] = WAKE_AT_ONCE
            self.fence()
            self.watch_peer()
        self.ring_own()
        return self.poll.fileno()

    def can_go_on(self) -> bool:
        """Return whether there is a message to take, or room for one."""
        waiting: int = self.words[HEAD] - self.words[TAIL]
        return waiting < self.capacity if self.sending else waiting != 0

    def quiet(self) -> None:
        """Make an armed descriptor readable exactly if this end can go on, or the other end has closed or ended."""
        if self._armed:
            self._drain()
            self.fence()
            self.watch_peer()  # another holder may have come
            if self.can_go_on() or self.peer_closed() or self._ended():
                self.ring_own()

    def wait(self, word: int, value: int, seconds: float | None, how: int = WAKE_AT_ONCE) -> None:
        """Sleep until a counter differs from `value`, the other end ends or closes, `ring_own` runs, or time is up."""
        words = self.words
        words[self._mine] = WAKE_AT_ONCE if self._armed else how
        try:
            self.fence()
            if words[word] != value or self.peer_closed():
                return
            self.watch_peer()
            watch = self._watch
            if self._ended():
                return
            if not ORDERED_STORES or watch.blind:
                seconds = _LOOK_AGAIN if seconds is None else min(seconds, _LOOK_AGAIN)
            watch.sleep(seconds)
            self._drain()
        finally:
            if not self._armed:
                words[self._mine] = 0
            else:
                self.quiet()  # what was drained may have been for others that watch the descriptor

    def spin(self, word: int, value: int, seconds: float) -> bool:
        """Read a counter for a short while without sleeping; return whether it changed."""
        if not ORDERED_STORES:
            return False
        words, clock = self.words, time.perf_counter
        end = clock() + seconds
        while words[word] == value:
            if clock() > end:
                return False
        return True

    def peer_closed(self) -> bool:
        """Return whether the other end has closed."""
        return bool(self.words[RECEIVER_CLOSED if self.sending else SENDER_CLOSED])

    def peer_held(self) -> bool:
        """Return whether a living holder has the other end."""
        question = FLOCK.pack(fcntl.F_WRLCK, 0, 1 if self.sending else 0, 1, 0)
        kind: int = FLOCK.unpack(fcntl.fcntl(self.memory_fd, fcntl.F_OFD_GETLK, question))[0]
        return kind != int(fcntl.F_UNLCK)

    def peer_dead(self) -> bool:
        """Return whether the other end's holder, or the process that was expected, has ended without closing."""
        holder = self._holder()
        if not holder[0]:
            return self._watch.expected_ended and not self.words[self._peer_pid]
        if self._watch.ended and holder == self._watch.holder:
            return True
        return not self.peer_held() and holder == self._holder()

    def _holder(self) -> tuple[int, int]:
        """Return the process of the other end's present or last holder, and how many holders it has had."""
        return self.words[self._peer_pid], self.words[self._peer_pid + HOLDERS]

    def empty_for_next(self) -> bool:
        """Drop the messages that a dead receiver has not taken; return False if a new receiver has come meanwhile."""
        try:
            self._lock(fcntl.F_WRLCK, mine=False)
        except BlockingIOError:
            return False
        try:
            self.words[TAIL] = self.words[HEAD]
        finally:
            self._lock(fcntl.F_UNLCK, mine=False)
        return True

    def watch_peer(self) -> None:
        """Have the end of the other end's present holder wake this one."""
        holder = self._holder()
        if self._watch.follow(holder, self.words[self._peer_pid + EXPECTED] or self.named) and holder[0]:
            # The number is the holder's only if it still holds its end now.
            self._watch.ended |= not self.peer_held()

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.bell, 4096)

    def _ended(self) -> bool:
        """Return whether the end of the holder that is watched, or of the process that was expected, was seen."""
        watch = self._watch
        return watch.ended or (watch.expected_ended and not watch.holder[0])

    def say_closed(self) -> None:
        """Tell the other end that this one is done."""
        self.words[SENDER_CLOSED if self.sending else RECEIVER_CLOSED] = 1
        self.ring()

    def close(self) -> None:
        """Close this end's openings."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []
        if hasattr(self, "_watch"):
            self._watch.close()
        if hasattr(self, "poll"):
            self.poll.close()
        if hasattr(self, "words"):
            self.words.release()
            with contextlib.suppress(BufferError):  # a core of this process still has it, until it is collected
                self.map.close()
