"""The layout of a segment file: header, manifest, skeleton, blocks; docs/segment-format.md describes every field."""

from __future__ import annotations

import hashlib
import json
import operator
import os
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from zerocopy._caretaker_process import distrust
from zerocopy.errors import CorruptSegmentError, OtherFormatError, UntrustedPathError

MAGIC = b"ZEROCOPY"
FORMAT = 3
PAGE = 4096  # the data starts at a multiple of this
HEADER = 128  # bytes before the manifest
_DIGEST_AT = 96
_LARGE = 1 << 20
_SPARSE = 100  # what the body may be larger than its space on the disk, as some file systems compress
_REMOVABLE = 1  # flag: the segment is removed when no process needs it
# magic, format, flags, manifest, skeleton, data offset, file size, inode, mtime
_FIXED = struct.Struct("<8sIIQQQQQq")
_FIRST = struct.Struct("<8sII")


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
        source: What the model was built from, as `share` compares it, or empty.
    """

    name: str
    version: int
    keep: bool
    digest: str
    blocks: tuple[Placed, ...]
    bases: Sequence[dict[str, Any]]
    source: str = ""

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
    def decode(cls, data: bytes, data_offset: int, size: int) -> Manifest:
        """Read the JSON form.

        Args:
            data: The JSON.
            data_offset: Where blocks may start in the file.
            size: Its size.

        Raises:
            ValueError: It is not a manifest, or has blocks outside the file.
            OtherFormatError: Its fields are those of another version.
        """
        raw = json.loads(data)
        try:
            plain = _all_inside(raw["blocks"], data_offset, size)
            make = _unchecked if plain else Placed._make
            manifest = cls(**{**raw, "blocks": tuple(map(make, raw["blocks"]))})
        except (TypeError, KeyError) as error:
            raise OtherFormatError(f"a manifest with other fields ({error}): publish it again") from error
        wrong = [name for name, kind in _KINDS.items() if not isinstance(getattr(manifest, name), kind)]
        if wrong or not all(_is_base(base) for base in manifest.bases):
            raise ValueError(f"fields have the wrong type: {', '.join(wrong) or 'bases'}")
        if plain:
            return manifest
        bases = range(len(manifest.bases))
        for offset, nbytes, digest, base, names in manifest.blocks:
            if type(offset) is not int or type(nbytes) is not int or type(digest) is not str or type(names) is not list:
                raise ValueError("a block has fields of the wrong type")
            inside = data_offset <= offset and offset + nbytes <= size if base is None else offset >= 0
            if nbytes < 0 or not (inside or nbytes == 0) or not (base is None or (type(base) is int and base in bases)):
                raise ValueError(f"block {', '.join(map(str, names)) or digest} lies outside the file or in no base")
        return manifest


_unchecked = partial(tuple.__new__, Placed)  # `Placed._make` counts the fields again


def _all_inside(blocks: Sequence[Sequence[Any]], data_offset: int, size: int) -> bool:
    """Return whether all blocks are plainly right, as usual: five fields of the right types, in the file, no base."""
    if not blocks or set(map(len, blocks)) != {5}:
        return not blocks
    offsets, sizes, digests, bases, names = zip(*blocks, strict=True)
    types = [set(map(type, column)) for column in (offsets, sizes, digests, bases, names)]
    if types != [{int}, {int}, {str}, {type(None)}, {list}]:
        return False
    return bool(min(sizes) >= 0 and min(offsets) >= data_offset and max(map(operator.add, offsets, sizes)) <= size)


def _is_base(base: object) -> bool:
    if not isinstance(base, dict):
        return False
    return "file" not in base or (type(base["file"]) is str and type(base.get("size")) is int)


_KINDS = {"name": str, "version": int, "keep": bool, "digest": str, "bases": list, "source": str}


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


def seal(fd: int, manifest: Manifest, skeleton: bytes, data_offset: int, size: int) -> None:
    """Write the header of a file whose data is complete, and set the modification time that the header records."""
    now = time.time_ns()
    text, flags = manifest.encode(), 0 if manifest.keep else _REMOVABLE
    fixed = _FIXED.pack(
        MAGIC, FORMAT, flags, len(text), len(skeleton), data_offset, size, os.fstat(fd).st_ino, now
    ).ljust(_DIGEST_AT, b"\0")
    digest = hashlib.sha256(fixed + text + skeleton).digest()
    write_all(fd, memoryview(fixed + digest + text + skeleton), 0)
    os.fchmod(fd, 0o400)  # a stray write of its own user is refused too
    if manifest.keep:
        os.fsync(fd)
    os.utime(fd, ns=(now, now))


def removable(fd: int) -> bool:
    """Return whether an open file says in its first bytes that it is a segment to remove when no process needs it."""
    magic, version, flags = _FIRST.unpack(os.pread(fd, _FIRST.size, 0).ljust(_FIRST.size, b"\0"))
    return magic == MAGIC and version == FORMAT and bool(flags & _REMOVABLE)


def check(fd: int, path: Path | str) -> Opened:
    """Check everything before the data of an open segment.

    Raises:
        UntrustedPathError: It belongs to another user, can be written by others, or is no plain file.
        CorruptSegmentError: It is not a segment, or was truncated or altered.
    """
    status = os.fstat(fd)
    reason = distrust(status)
    if reason:
        raise UntrustedPathError(f"{path} {reason}: its skeleton is a pickle and is not read")
    header = os.pread(fd, HEADER, 0)
    if len(header) < HEADER or not header.startswith(MAGIC):
        raise CorruptSegmentError(f"{path} is not a segment: it starts with {header[:8]!r}")
    _, version, _, manifest_size, skeleton_size, data_offset, size, inode, mtime = _FIXED.unpack_from(header)
    if version != FORMAT:
        raise OtherFormatError(f"{path} has format {version}, this zerocopy reads format {FORMAT}: publish it again")
    if status.st_size != size:
        raise CorruptSegmentError(f"{path} has {status.st_size} bytes instead of {size}: it was truncated or extended")
    if HEADER + manifest_size + skeleton_size > data_offset or data_offset > size:
        raise CorruptSegmentError(f"{path} has a header whose parts overlap or lie outside the file")
    if manifest_size + skeleton_size > _SPARSE * max(status.st_blocks * 512, PAGE):
        raise CorruptSegmentError(f"{path} has a header that claims {manifest_size + skeleton_size} bytes of holes")
    body = _read_body(fd, header, manifest_size + skeleton_size, path)
    untouched = (status.st_ino, status.st_mtime_ns) == (inode, mtime)
    try:
        manifest = Manifest.decode(body[:manifest_size], data_offset, size)
    except OtherFormatError as error:
        raise OtherFormatError(f"{path} has {error}") from error
    except (ValueError, RecursionError) as error:
        raise CorruptSegmentError(f"{path} has a manifest that cannot be read: {error}") from error
    return Opened(fd, manifest, body[manifest_size:], data_offset, untouched)


def _read_body(fd: int, header: bytes, nbytes: int, path: Path | str) -> bytes:
    """Return manifest and skeleton. A large body is read only once its digest is known to be right."""
    digest = hashlib.sha256(header[:_DIGEST_AT])
    if nbytes > _LARGE:
        for start in range(0, nbytes, _LARGE):
            digest.update(os.pread(fd, min(_LARGE, nbytes - start), HEADER + start))
        _require(digest.digest(), header, path)
        digest = hashlib.sha256(header[:_DIGEST_AT])
    body = os.pread(fd, nbytes, HEADER)
    digest.update(body)
    _require(digest.digest(), header, path)
    return body


def _require(digest: bytes, header: bytes, path: Path | str) -> None:
    if digest != header[_DIGEST_AT:]:
        raise CorruptSegmentError(f"{path} has a header or skeleton that does not match its digest")
