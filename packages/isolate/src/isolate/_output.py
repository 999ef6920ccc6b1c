"""The output of a worker as log records, a line each, within a budget."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable

TAIL_LINES = 20
_LINE_LIMIT = 8192
_CONTINUES = " … (the line continues)".encode()
_READ, _READ_DROPPED = 8192, 65536
_LINES_PER_SECOND = 2000
_PAUSE = 0.005
"""Seconds for which output beyond the limit waits in its pipe, so that dropping it costs little."""


class OutputLines:
    """Logs what comes out of a pipe and keeps the last lines.

    Args:
        loop: Reads the pipe.
        fd: The pipe's descriptor; owned by this object.
        log: Called with each line.
        limit: Bytes in a second that are logged; the rest of the second is dropped, and counted in one more record.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, log: Callable[[str], None], limit: int) -> None:
        self._loop = loop
        self._fd = fd
        self._log = log
        self._limit = limit
        self._rest = b""
        self._second = 0.0
        self._bytes = 0
        self._lines = 0
        self._dropped = 0
        self._paused: asyncio.TimerHandle | None = None
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        os.set_blocking(fd, False)
        self._listen()

    def read(self) -> bool:
        """Take some of what is there; return False at the end or when there is nothing."""
        if self._fd < 0:
            return False
        over = self._is_over
        try:
            data = os.read(self._fd, _READ_DROPPED if over else _READ)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            return False
        now = time.monotonic()
        if now - self._second >= 1:
            self._report_dropped()
            self._second, self._bytes, self._lines = now, 0, 0
        if over:
            self._drop(data)
        else:
            self._log_lines(data)
        if self._is_over:
            self._pause()
        return True

    @property
    def _is_over(self) -> bool:
        return self._bytes > self._limit or self._lines > _LINES_PER_SECOND

    def _log_lines(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LINE_LIMIT:
            lines.append(self._rest[:_LINE_LIMIT] + _CONTINUES)
            self._rest = self._rest[_LINE_LIMIT:]
        for index, line in enumerate(lines):
            self._bytes += len(line) + 1
            self._lines += 1
            if self._is_over:
                self._dropped += len(lines) - index
                self.tail.extend(map(_text, lines[-TAIL_LINES:]))
                return
            self._emit(line)

    def _drop(self, data: bytes) -> None:
        self._dropped += data.count(b"\n")
        *lines, self._rest = data[-_READ:].split(b"\n")[-TAIL_LINES - 1 :]
        self._rest = self._rest[-_LINE_LIMIT:]
        self.tail.extend(map(_text, lines))

    def _pause(self) -> None:
        if self._fd >= 0 and self._paused is None:
            self._loop.remove_reader(self._fd)
            self._paused = self._loop.call_later(_PAUSE, self._listen)

    def _listen(self) -> None:
        self._paused = None
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self.read)

    def _report_dropped(self) -> None:
        if self._dropped:
            self._log(f"{self._dropped} lines of output were dropped: more than {self._limit} bytes in a second")
            self._dropped = 0

    def _emit(self, line: bytes) -> None:
        text = _text(line)
        self.tail.append(text)
        self._log(text)

    def close(self) -> None:
        """Close the pipe and log what is left."""
        if self._fd >= 0:
            if self._paused is not None:
                self._paused.cancel()
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            if self._rest:
                self._emit(self._rest)
                self._rest = b""
            self._report_dropped()


def _text(line: bytes) -> str:
    text = line.decode("utf-8", "replace").rstrip("\r")
    return text if len(line) <= 2 * _LINE_LIMIT else f"{text[:_LINE_LIMIT]} … (cut, {len(line)} bytes)"
