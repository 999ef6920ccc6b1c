"""Bytes, JSON and the header of safetensors files, read with bounds: memory and time in proportion to the file."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

from ternary.errors import ImportFormatError

__all__ = ["parse_json", "read_exactly", "read_tensor_header"]

MOST_HEADER = 100_000_000
_BYTES_A_CONTAINER = 12


def parse_json(text: bytes | str) -> Any:
    """Parse JSON that may be hostile.

    Raises:
        ValueError: It is no JSON, is nested too deeply, or consists of so many lists and objects that they would take
            many times its own size.
    """
    opened = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if opened > 1000 + len(text) // _BYTES_A_CONTAINER:
        raise ValueError(f"{opened} lists and objects in {len(text)} bytes of JSON")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply") from None


def read_tensor_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the table of a safetensors file, and where its data begin.

    Raises:
        ValueError: The file has no such header; the text says why.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        start, size = file.read(8), os.fstat(file.fileno()).st_size
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, MOST_HEADER):
            raise ValueError(f"its header has {length} bytes")
        table = parse_json(file.read(length))
    if not isinstance(table, dict):
        raise ValueError("its header is no JSON object")
    return table, 8 + length


def read_exactly(path: Path, offset: int, size: int) -> bytearray:
    """Return so many bytes of a file from `offset` on.

    Raises:
        ImportFormatError: The file ends before.
    """
    buffer = bytearray(size)
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        view, done = memoryview(buffer), 0
        while done < size:
            got = file.readinto(view[done:])
            if not got:
                raise ImportFormatError(f"{path} is cut off: it ends {size - done} bytes early")
            done += got
    return buffer
