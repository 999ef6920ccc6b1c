"""A table of names and handles in shared memory: one process writes it in place, others look names up.

A row holds a checksum, a state, the name and the handle. A row is written by one copy; a reader that meets it half
written fails its checksum and looks again. The rows are an open hash table: a name is searched from the row of its hash
onwards until an empty row.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from xfer.errors import ProducerGoneError

ROW = 256
_HEAD = struct.Struct("<IHHHHQ")  # checksum, state, length of the name, length of the handle, unused, hash of the name
ROOM = ROW - _HEAD.size
EMPTY, USED, REMOVED, ELSEWHERE = range(4)
LEAST = 16
_TRY_FOR = 0.1
_BLANK = bytes(ROW)


class Row(NamedTuple):
    """What a row holds; where state is ELSEWHERE, `handle` names an array that holds name and handle."""

    state: int
    digest: int
    name: bytes
    handle: bytes


def digest_of(name: str) -> int:
    """Return the hash of a name, the same in every process."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class Table:
    """The rows.

    Args:
        memory: The bytes of the table, a multiple of a row.
    """

    def __init__(self, memory: np.ndarray[Any, Any]) -> None:
        self._memory = memory
        self.rows = memory.size // ROW

    def write(self, index: int, row: Row) -> None:
        """Write a row in place."""
        body = _HEAD.pack(0, row.state, len(row.name), len(row.handle), 0, row.digest)[4:] + row.name + row.handle
        body = body.ljust(ROW - 4, b"\0")
        self._memory[index * ROW : (index + 1) * ROW] = np.frombuffer(
            crc32(body).to_bytes(4, "little") + body, np.uint8
        )

    def read(self, index: int) -> Row | None:
        """Return a row, or None for an empty one.

        Raises:
            ProducerGoneError: It stays half written, because its writer has ended.
        """
        end = 0.0
        while True:
            raw = self._memory[index * ROW : (index + 1) * ROW].tobytes()
            if raw == _BLANK:
                return None
            check, state, name, handle, _, digest = _HEAD.unpack_from(raw)
            if crc32(raw[4:]) == check:
                start = _HEAD.size + name
                return Row(state, digest, raw[_HEAD.size : start], raw[start : start + handle])
            end = end or time.monotonic() + _TRY_FOR
            if time.monotonic() > end:
                raise ProducerGoneError("the store's process has ended while it wrote")
            time.sleep(0.0001)

    def probe(self, digest: int) -> Iterator[tuple[int, Row | None]]:
        """Go through the rows where a name of this hash may be; the last one is empty."""
        for step in range(self.rows):
            index = (digest + step) % self.rows
            row = self.read(index)
            yield index, row
            if row is None:
                return

    def find(self, digest: int) -> Iterator[Row]:
        """Go through the rows whose name has this hash."""
        memory, rows, look = self._memory.data, self.rows, _HEAD.unpack_from
        index = digest % rows
        for _ in range(rows):
            # A row's hash changes only while its state is REMOVED, so that a row in use is never passed by.
            _, state, _, _, _, found = look(memory, index * ROW)
            if found == digest and state != EMPTY:
                row = self.read(index)
                if row is not None:
                    yield row
            elif state == EMPTY:
                return
            index = index + 1 if index + 1 < rows else 0

    def used(self) -> Iterator[Row]:
        """Go through the rows that hold a name."""
        for index in range(self.rows):
            row = self.read(index)
            if row is not None and row.state in (USED, ELSEWHERE):
                yield row
