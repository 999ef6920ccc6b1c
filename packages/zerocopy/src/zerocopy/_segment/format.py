"""The layout of a segment file: header, manifest, skeleton, blocks; docs/segment-format.md describes every field."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from zerocopy.errors import CorruptSegmentError, OtherFormatError

MAGIC = b"ZEROCOPY"
FORMAT = 3
PAGE = 4096  # the data starts at a multiple of this
HEADER = 128  # bytes before the manifest
_DIGEST_AT = 96
# magic, format, reserved, manifest, skeleton, data offset, file size, inode, mtime
_FIXED = struct.Struct("<8sIIQQQQQq")


class Placed(NamedTuple):
    """Where one block lies. It is an array in the manifest.

    Args:
        offset: Bytes from the start of its segment file.
        nbytes: Its length.
        digest: Hex 128-bit XXH3 of its bytes.
        base: Index in `Manifest.bases` of the segment that holds it, or None for this file.
        names: Dotted names of the tensors in it.
    """

    offset: int
    nbytes: int
    digest: str
    base: int | None
    names: Sequence[str]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a segment says about itself.

    Args:
        name: The model's name.
        version: Its version.
        keep: Whether it outlives its publisher and readers.
        digest: Hex SHA-256 over skeleton and block digests. Equal digests mean equal models.
        blocks: In the order of the skeleton's table.
        bases: Where the blocks lie that are not stored here: each the fields of a ModelRef, or a `stamp` of a file.
    """

    name: str
    version: int
    keep: bool
    digest: str
    blocks: tuple[Placed, ...]
    bases: Sequence[dict[str, Any]]

    @property
    def model_nbytes(self) -> int:
        """Bytes of all blocks, those in base segments included."""
        return sum(block.nbytes for block in self.blocks)

    def encode(self) -> bytes:
        """Return the JSON form."""
        return json.dumps(
            {part.name: getattr(self, part.name) for part in fields(self)}, separators=(",", ":")
        ).encode()

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Read the JSON form."""
        raw = json.loads(data)
        blocks = tuple(map(Placed._make, raw.pop("blocks")))
        return cls(**raw, blocks=blocks)


@dataclass(frozen=True, slots=True)
class Opened:
    """A checked header: the descriptor it was read from, and what it says."""

    fd: int
    manifest: Manifest
    skeleton: bytes
    data_offset: int
    untouched: bool


def round_up(value: int, step: int) -> int:
    """Return the smallest multiple of `step` that is not below `value`."""
    return -(-value // step) * step


def model_digest(skeleton: bytes, hashes: Sequence[str]) -> str:
    """Return the hex SHA-256 that identifies a model: over its skeleton and the digests of its blocks."""
    return hashlib.sha256(hashlib.sha256(skeleton).digest() + "".join(hashes).encode()).hexdigest()


def write_all(fd: int, view: memoryview, offset: int) -> None:
    """Write all bytes of a view at an offset."""
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)


def seal(fd: int, manifest: bytes, skeleton: bytes, data_offset: int, size: int) -> None:
    """Write the header of a file whose data is complete, and set the modification time that the header records."""
    now = time.time_ns()
    fixed = _FIXED.pack(
        MAGIC, FORMAT, 0, len(manifest), len(skeleton), data_offset, size, os.fstat(fd).st_ino, now
    ).ljust(_DIGEST_AT, b"\0")
    digest = hashlib.sha256(fixed + manifest + skeleton).digest()
    write_all(fd, memoryview(fixed + digest + manifest + skeleton), 0)
    os.fchmod(fd, 0o444)
    os.utime(fd, ns=(now, now))


def check(fd: int, path: Path) -> Opened:
    """Check everything before the data of an open segment.

    Raises:
        CorruptSegmentError: It is not a segment, or was truncated or altered.
    """
    status = os.fstat(fd)
    if status.st_uid not in (os.getuid(), 0):
        raise CorruptSegmentError(f"{path} belongs to user {status.st_uid}: its skeleton is a pickle and is not read")
    header = os.pread(fd, HEADER, 0)
    if len(header) < HEADER or not header.startswith(MAGIC):
        raise CorruptSegmentError(f"{path} is not a segment: it starts with {header[:8]!r}")
    _, version, _, manifest_size, skeleton_size, data_offset, size, inode, mtime = _FIXED.unpack_from(header)
    if version != FORMAT:
        raise OtherFormatError(f"{path} has format {version}, this zerocopy reads format {FORMAT}: publish it again")
    if status.st_size != size:
        raise CorruptSegmentError(f"{path} has {status.st_size} bytes instead of {size}: it was truncated or extended")
    if HEADER + manifest_size + skeleton_size > data_offset:
        raise CorruptSegmentError(f"{path} has a header whose parts overlap")
    body = os.pread(fd, manifest_size + skeleton_size, HEADER)
    if hashlib.sha256(header[:_DIGEST_AT] + body).digest() != header[_DIGEST_AT:]:
        raise CorruptSegmentError(f"{path} has a header or skeleton that does not match its digest")
    untouched = (status.st_ino, status.st_mtime_ns) == (inode, mtime)
    return Opened(fd, Manifest.decode(body[:manifest_size]), body[manifest_size:], data_offset, untouched)
