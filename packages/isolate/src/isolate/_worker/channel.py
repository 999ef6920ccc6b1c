"""Frames over one Unix socket, with descriptors beside them."""

from __future__ import annotations

import array
import asyncio
import errno
import os
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from .errors import LinkClosedError, OverloadedError, WireError
from .frames import FRAME_LIMIT, HEADER, FrameReader
from .turns import TURN, Turns, Usage

_FDS_PER_READ = 8
_ANCILLARY = socket.CMSG_SPACE(_FDS_PER_READ * 4)
# Plain numbers: an operation on the enum's members takes microseconds.
_CUT, _CLOEXEC = int(socket.MSG_CTRUNC), int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
_WHOLE = 16 << 10
"""Bytes up to which the kernel takes a frame whole or not at all."""
_SOON = 2e-5
"""Seconds between two frames of the loop's thread, below which they are taken for frames of one iteration."""

OnFrame = Callable[[int, int, bytes], None]


class _Waiting:
    """A frame that was not sent whole yet.

    Args:
        data: The frame.
        sent: The numbers of its bytes that were sent at a time.
        descriptor: Goes with the first byte; owned by this object.
    """

    __slots__ = ("_data", "_sent", "descriptor")

    def __init__(self, data: bytes, sent: list[int], descriptor: int | None) -> None:
        self._data, self._sent, self.descriptor = data, sent, descriptor

    @property
    def rest(self) -> memoryview:
        """What was not sent yet."""
        return memoryview(self._data)[sum(self._sent) :]

    def send(self, transmit: Callable[[Any, int | None, list[int]], None]) -> tuple[int, bool]:
        """Send what can be sent now; return how many bytes that were, and whether nothing is left."""
        before = sum(self._sent)
        if before < len(self._data):
            transmit(memoryview(self._data)[before:] if before else self._data, self.descriptor, self._sent)
        after = sum(self._sent)
        descriptor = self.descriptor
        if descriptor is not None and after:
            self.descriptor = None
            os.close(descriptor)
        return after - before, after == len(self._data)


class Channel:  # long because reading, writing and turns share one socket
    """Reads and writes frames.

    A signal handler, such as that of Ctrl-C, may raise an error in `send` at any moment. A frame of which a part was
    sent by then is completed all the same.

    Args:
        sock: A connected stream socket; the channel owns it.
        loop: The event loop that reads; `send` may be called from any thread.
        on_frame: Called on the loop with kind, call number and payload.
        on_closed: Called once on the loop, with None at end of stream and with the error otherwise.
        limit: Largest payload in bytes that is accepted or sent.
        queued_limit: Bytes that may wait until the other side reads them.
        turns: Shared by the loop's channels; decides when each may use its thread. None for an only channel.

    Attributes:
        closed: Whether the channel is closed.
        draining: Whether `drain` was called.
        paused: Whether `pause` was called, and `resume` not yet.
        descriptors: Those received that no frame has taken yet.
    """

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        on_frame: OnFrame,
        on_closed: Callable[[BaseException | None], None],
        limit: int = FRAME_LIMIT,
        queued_limit: int = 1 << 30,
        turns: Turns | None = None,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = loop
        self._thread = threading.get_ident()
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._limit = limit
        self._queued_limit = queued_limit
        self._turns = turns
        self._usage = Usage()
        self._until = 0.0
        self._waits = False
        self.draining = False
        self.paused = False
        self._lock = threading.Lock()
        self._turn = False
        self._batch: list[bytes] = []
        self._batch_size = 0
        self._written = 0.0
        self._backlog: deque[_Waiting] = deque()
        self._backlog_size = 0
        self._armed = False
        self._reader = FrameReader(limit)
        self.descriptors: deque[int] = deque()
        self.closed = False
        self._listening = False
        self._listen(True)

    @property
    def on_loop_thread(self) -> bool:
        """Whether the caller runs on the thread that reads this channel."""
        return threading.get_ident() == self._thread

    def send(
        self, kind: int, number: int, payload: bytes, descriptor: int | None = None, sent: list[int] | None = None
    ) -> None:
        """Send a frame. On the loop's thread, frames that follow another at once are written at the iteration's end.

        Args:
            kind: The kind of the frame.
            number: The call number.
            payload: What follows the header.
            descriptor: A descriptor that goes with the frame.
            sent: An empty list. It has an item once the frame is on its way, also if an error is raised after that.

        Raises:
            LinkClosedError: The other side is gone.
            OverloadedError: The payload exceeds the frame limit, or too much is waiting for the other side to read.
        """
        if self.closed:
            raise LinkClosedError("the other side is gone")
        size = len(payload)
        if size > self._limit:
            raise OverloadedError(
                f"a message of {size} bytes passes the limit of {self._limit}; send it as an array or bytes"
            )
        waiting = self._backlog_size + self._batch_size
        if waiting and waiting + size > self._queued_limit:
            raise OverloadedError(f"the other side has not read {waiting} bytes that wait for it")
        data = HEADER.pack(size, kind, number) + payload
        sent = [] if sent is None else sent
        if descriptor is None and threading.get_ident() == self._thread:
            if self._turn:
                _append(self._batch, data, sent)
                self._batch_size += len(data)
                return
            before, self._written = self._written, time.perf_counter()
            if self._written - before < _SOON:
                self._loop.call_soon(self.flush)
                self._turn = True
                _append(self._batch, data, sent)
                self._batch_size = len(data)
                return
        self._write(data, descriptor, sent)

    def flush(self) -> None:
        """Write the batch of this iteration of the loop."""
        self._turn = False
        batch, self._batch, self._batch_size = self._batch, [], 0
        if batch and not self.closed:
            self._write(batch[0] if len(batch) == 1 else b"".join(batch), None, [])

    def _write(self, data: bytes, descriptor: int | None, sent: list[int]) -> None:
        with self._lock:
            if self.closed:
                raise LinkClosedError("the other side is gone")
            if not self._backlog and len(data) <= _WHOLE:
                self._transmit(data, descriptor, sent)
                if sent:
                    return
            own = None if descriptor is None else os.dup(descriptor)
            _append(self._backlog, _Waiting(data, sent, own), sent)
            self._backlog_size += len(data)
            self._send_waiting()
            if self._backlog and not self._armed:
                self._loop.call_soon_threadsafe(self._arm)

    def _transmit(self, data: bytes | memoryview, descriptor: int | None, sent: list[int]) -> None:
        """Send what the kernel takes, and note in the same step how much that was."""
        try:
            if descriptor is None:
                sent.extend(map(self._sock.send, (data,)))
            else:
                passed = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))
                sent.extend(map(self._sock.sendmsg, ([data],), ([passed],)))
        except BlockingIOError:
            return
        except OSError as failure:
            # The reader reports the end of the stream, after it has read what was sent before.
            if failure.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise
            sent.append(len(data))

    def _arm(self) -> None:
        if not self.closed:
            self._armed = True
            self._loop.add_writer(self._sock.fileno(), self._on_writable)

    def _on_writable(self) -> None:
        with self._lock:
            self._send_waiting()
            if not self._backlog:
                self._armed = False
                self._loop.remove_writer(self._sock.fileno())

    def _send_waiting(self) -> None:
        """Send what waits, as far as the kernel takes it; called under the lock."""
        while self._backlog:
            count, is_whole = self._backlog[0].send(self._transmit)
            self._backlog_size -= count
            if not is_whole:
                return
            self._backlog.popleft()
        self._backlog_size = 0

    def _listen(self, wanted: bool) -> None:
        """Have the loop say when there is something to read, or not."""
        if wanted and not self._listening:
            self._loop.add_reader(self._sock.fileno(), self._on_readable)
        elif self._listening and not wanted:
            self._loop.remove_reader(self._sock.fileno())
        self._listening = wanted

    def _on_readable(self) -> None:
        if self._waits:
            self._listen(False)  # else the loop would say so without end until this connection's turn
            return
        now = time.perf_counter()
        if self._turns is not None and not self._turns.may_begin(self._usage, now):
            self._wait()
            return
        self._until = float("inf") if self.draining else now + TURN  # as `_use`, without a call
        try:
            self._receive()
        except Exception as failure:
            self._finish(failure)
        if self._turns is not None:
            self._usage.add(now, time.perf_counter())

    def _wait(self) -> None:
        self._waits = True
        if self._turns is None:
            self._loop.call_soon(self._next_turn)
        else:
            self._turns.wait(self._usage, self._next_turn)

    def _next_turn(self) -> None:
        if self._waits:
            self._waits = False
            if not self.paused and not self.closed:
                self._listen(True)
                self._use(self._continue, time.perf_counter())

    def _use(self, work: Callable[[], None], began: float) -> None:
        """Use the loop's thread for about one turn."""
        self._until = float("inf") if self.draining else began + TURN
        try:
            work()
        except Exception as failure:
            self._finish(failure)
        if self._turns is not None:
            self._usage.add(began, time.perf_counter())

    def _continue(self) -> None:
        """Deliver what has arrived already, then read more if there is time."""
        self._reader.received(0, self._on_frame, self._goes_on)
        if not (self._waits or self.paused or self.closed):
            self._receive()

    def _goes_on(self) -> bool:
        """Return whether the next frame is delivered now; else others have their turn before."""
        if not self.paused and not self.closed and time.perf_counter() > self._until:
            self._wait()
        return not (self.closed or self.paused or self._waits)

    def _receive(self) -> None:
        try:
            count, ancillary, flags, _ = self._sock.recvmsg_into(
                [self._reader.room],
                _ANCILLARY,
                _CLOEXEC,
            )
        except (BlockingIOError, InterruptedError):
            return
        except OSError as failure:
            self._finish(None if failure.errno == errno.ECONNRESET else failure)
            return
        if ancillary or flags & _CUT:
            self._take_descriptors(ancillary, flags)
        if not count:
            self._finish(WireError("the stream ends inside a frame") if self._reader.partial else None)
            return
        self._reader.received(count, self._on_frame, self._goes_on)

    def _take_descriptors(self, ancillary: list[Any], flags: int) -> None:
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                whole = len(data) // 4 * 4
                self.descriptors.extend(struct.unpack(f"{whole // 4}i", data[:whole]))
        if flags & _CUT:
            os.close(os.dup(self._sock.fileno()))  # fails if this process has too many files open: not the peer's fault
        if flags & _CUT or len(self.descriptors) > _FDS_PER_READ * 2:
            raise WireError(f"{len(self.descriptors)} descriptors came without a frame that names them")

    def pause(self) -> None:
        """Read and deliver nothing until `resume`; call it on the loop, from `on_frame`."""
        self.paused = True
        self._listen(False)

    def resume(self) -> None:
        """Deliver what has arrived meanwhile, and read again; call it on the loop."""
        if self.closed:
            return
        self.paused = False
        self._listen(True)
        if self._turns is None or self._turns.may_begin(self._usage, time.perf_counter()):
            self._waits = True
            self._next_turn()
        else:
            self._wait()

    def drain(self) -> None:
        """Deliver what has arrived and was not read yet; for a peer that has exited."""
        self.draining = True
        self._next_turn()
        while not (self.closed or self.paused):
            before = self._reader.partial
            self._use(self._receive, time.perf_counter())
            if self._reader.partial == before:
                return

    def fail(self, failure: BaseException) -> None:
        """Close after an error in what was received."""
        self._finish(failure)

    def _finish(self, failure: BaseException | None) -> None:
        if not self.closed:
            self.close()
            self._on_closed(failure)

    def close(self, flush: bool = False) -> None:
        """Close the socket; with `flush`, write what is still waiting first (at most two seconds)."""
        if self.closed:
            return
        if flush:
            try:
                self._sock.settimeout(2)
                for data in [bytes(frame.rest) for frame in self._backlog] + self._batch:
                    self._sock.sendall(data)
            except OSError:
                pass
        with self._lock:
            self.closed = True
            self._listen(False)
            self._loop.remove_writer(self._sock.fileno())
            for frame in self._backlog:
                if frame.descriptor is not None:
                    os.close(frame.descriptor)
            self._backlog.clear()
            self._batch = []
            for descriptor in self.descriptors:
                os.close(descriptor)
            self.descriptors.clear()
            self._sock.close()


def _append(queue: Any, item: Any, sent: list[int]) -> None:
    """Append to a queue, and note in the same step that nothing of the item was sent by now, but will be."""
    sent.extend(map(int, map(bool, map(queue.append, (item,)))))
