"""Frames to bytes and back, without a socket.

A frame is a header of 13 bytes (length of the payload as u32, kind as u8, call number as u64, little endian) and the
payload. The length is checked against the limit before anything is allocated.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from .errors import WireError

HEADER = struct.Struct("<IBQ")
FRAME_LIMIT = 256 << 20
_BUFFER = 256 << 10


def frame(kind: int, number: int, payload: bytes) -> bytes:
    """Encode one frame."""
    return HEADER.pack(len(payload), kind, number) + payload


class FrameReader:
    """Cuts a stream of bytes into frames.

    Read into `room`, then call `received` with the number of bytes read.

    Args:
        limit: Largest payload in bytes that is accepted.

    Attributes:
        room: The memory that the next bytes are read into; never empty.
    """

    def __init__(self, limit: int = FRAME_LIMIT) -> None:
        self._limit = limit
        self._buffer = bytearray(_BUFFER)
        self.room = self._view = memoryview(self._buffer)
        self._end = 0

    @property
    def partial(self) -> int:
        """Bytes received of a frame that is not complete."""
        return self._end

    def received(
        self, count: int, on_frame: Callable[[int, int, Any], None], go_on: Callable[[], bool] = lambda: True
    ) -> None:
        """Pass on each frame that is complete now.

        Args:
            count: How many bytes were written into `room`.
            on_frame: Called with kind, call number and payload: bytes, or a view of them if they are many.
            go_on: Asked before each further frame; if it returns False, the rest comes with the next call.

        Raises:
            WireError: A frame announces more than the limit.
        """
        self._end += count
        start, end, limit = 0, self._end, self._limit
        while end - start >= 13:
            length, kind, number = HEADER.unpack_from(self._buffer, start)
            if length > limit:
                raise WireError(f"a frame announces {length} bytes, the limit is {limit}")
            stop = start + 13 + length
            if stop > end:
                self._make_room(start, 13 + length)
                return
            if start and not go_on():
                break
            start = stop
            if length > _BUFFER:  # it fills a buffer of its own, which is passed on without a copy
                payload = self._view[13:]
                self._buffer = bytearray(_BUFFER)
                self.room = self._view = memoryview(self._buffer)
                self._end = 0
                on_frame(kind, number, payload)
                return
            on_frame(kind, number, bytes(self._view[stop - length : stop]))
        if start == end:
            self.room, self._end = self._view, 0
        else:
            self._make_room(start, 13)

    def _make_room(self, start: int, need: int) -> None:
        rest = self._end - start
        if need > len(self._buffer):
            buffer = bytearray(need)
            buffer[:rest] = self._view[start : self._end]
            self._buffer, self._view = buffer, memoryview(buffer)
        elif start:
            self._buffer[:rest] = bytes(self._view[start : self._end])
        self.room, self._end = self._view[rest:], rest
