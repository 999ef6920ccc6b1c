"""The segment file: how a model's bytes lie in it, how it is written, and how it is checked and mapped.

    0     "ZEROCOPY", version, sizes, then inode and time of sealing
    96    SHA-256 of everything before the data
    128   manifest (JSON), skeleton (pickle)
    data  at a multiple of 4096; every block at a multiple of 64

A file whose inode and modification time are still those of its sealing has not been written since, and is mapped
after its first kilobytes are checked. Any other (a copy, a touched file) has every block hashed first. Blocks are
hashed by XXH3: at the speed of memory it finds damage and equal bytes, and is no proof against forgery, for whoever can
write a segment can also seal it. Knows nothing of names, leases or Ray.
"""

from __future__ import annotations

import _thread
import ctypes
import hashlib
import json
import mmap
import os
import struct
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xxhash

from zerocopy.errors import CorruptSegmentError, NoSpaceError, OtherFormatError, SegmentGoneError
from zerocopy.flatten import ALIGNMENT, Flat
from zerocopy.lease import share

MAGIC = b"ZEROCOPY"
FORMAT = 3
_PAGE = 4096
_PIECE = 1 << 20  # bytes copied and then hashed at a time, so that the hash finds them in the processor's cache
_STEP = 64 << 20  # bytes hashed between two reports of progress
# magic, format, reserved, manifest, skeleton, data offset, file size, inode, mtime
_FIXED = struct.Struct("<8sIIQQQQQq")
_HEADER = 128
_DIGEST_AT = 96
_MADV_POPULATE_READ = 22  # Linux 5.14; Python's mmap does not name it yet
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Placed(NamedTuple):
    """Where one block lies; an array in the manifest.

    Args:
        offset: bytes from the start of its segment file.
        nbytes: its length.
        digest: hex 128-bit XXH3 of its bytes.
        base: which entry of ``Manifest.bases`` holds it, or None for this file.
        names: dotted names of the tensors in it.
    """

    offset: int
    nbytes: int
    digest: str
    base: int | None
    names: Sequence[str]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a segment says of itself.

    Args:
        name: the model's name.
        version: its version.
        keep: whether it outlives its publisher and readers.
        digest: hex SHA-256 over skeleton and block digests: equal digests mean equal models.
        blocks: in the order of the skeleton's table.
        bases: where the blocks lie that are not stored here: each the fields of a ModelRef, or a ``stamp`` of a file.
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


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


Tick = Callable[[int], object]  # told of so many bytes more


def no_tick(nbytes: int) -> None:
    """Tell nobody."""


def hash_blocks(views: Iterable[memoryview], tick: Tick = no_tick) -> list[str]:
    """Return the hex digest of each view."""
    digests = []
    for view in views:
        digest = xxhash.xxh3_128()
        for start in range(0, len(view), _STEP):
            digest.update(view[start : start + _STEP])
            tick(min(_STEP, len(view) - start))
        digests.append(digest.hexdigest())
    return digests


def model_digest(skeleton: bytes, hashes: Sequence[str]) -> str:
    """Return the hex SHA-256 that names a model: its skeleton and the digests of its blocks."""
    return hashlib.sha256(hashlib.sha256(skeleton).digest() + "".join(hashes).encode()).hexdigest()


def write_segment(
    fd: int,
    flat: Flat,
    manifest: Manifest,
    *,
    known: Sequence[tuple[int, int] | None] | None = None,
    hashes: Sequence[str] | None = None,
    tick: Tick = no_tick,
) -> Manifest:
    """Write a model into an empty open file and seal it.

    Args:
        fd: open for reading and writing; nothing is visible until the caller renames it.
        flat: the model.
        manifest: name, version, keep and bases; blocks and digest are filled in here.
        known: for each block (index of base, offset in it) where a base already holds its bytes, else None.
        hashes: the blocks' digests where the caller has them already.
        tick: told of every piece of the model that is done.

    Returns:
        The complete manifest.

    Raises:
        NoSpaceError: the file system cannot hold it.
    """
    places = known or [None] * len(flat.blocks)
    blank = ["0" * 32] * len(flat.blocks)
    draft = replace(manifest, digest="0" * 64, blocks=_place(flat, places, blank, 1 << 52))
    data_offset = _round_up(_HEADER + len(draft.encode()) + len(flat.skeleton), _PAGE)
    placed = _place(flat, places, blank, data_offset)
    stored = [block for block, where in zip(placed, places, strict=True) if where is None]
    size = max([data_offset, *(block.offset + block.nbytes for block in stored)])
    try:
        _reserve(fd, size)
        digests = list(hashes or ())
        for block, place in zip(flat.blocks, placed, strict=True):
            if place.base is None:
                digest = _copy(fd, block.bytes_view(), place.offset, tick)
                if hashes is None:
                    digests.append(digest)
        done = replace(
            manifest, digest=model_digest(flat.skeleton, digests), blocks=_place(flat, places, digests, data_offset)
        )
        seal(fd, done.encode(), flat.skeleton, data_offset, size)
    except OSError as error:
        raise NoSpaceError(
            error.errno,
            f"no room for a segment of {size} bytes ({error.strerror}); nothing was published: "
            "free some memory, or pass directory= to publish on disk",
        ) from error
    return done


def _place(
    flat: Flat, known: Sequence[tuple[int, int] | None], hashes: Sequence[str], offset: int
) -> tuple[Placed, ...]:
    placed = []
    for block, where, digest in zip(flat.blocks, known, hashes, strict=True):
        if where is not None:
            placed.append(Placed(where[1], block.nbytes, digest, where[0], block.names))
            continue
        placed.append(Placed(offset, block.nbytes, digest, None, block.names))
        offset = _round_up(offset + block.nbytes, ALIGNMENT)
    return tuple(placed)


def _reserve(fd: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)  # a full file system says so here, not by a signal later
    else:
        os.ftruncate(fd, size)


def _copy(fd: int, view: memoryview, offset: int, tick: Tick) -> str:
    """Write a block, hashing each piece while the processor's cache still has it; return the digest."""
    digest = xxhash.xxh3_128()
    for start in range(0, len(view), _PIECE):
        piece = view[start : start + _PIECE]
        _write_all(fd, piece, offset + start)
        digest.update(piece)
        tick(len(piece))
    return digest.hexdigest()


def _write_all(fd: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)


def seal(fd: int, manifest: bytes, skeleton: bytes, data_offset: int, size: int) -> None:
    """Write the header over finished data, and fix the modification time that it vouches for."""
    now = time.time_ns()
    fixed = _FIXED.pack(
        MAGIC, FORMAT, 0, len(manifest), len(skeleton), data_offset, size, os.fstat(fd).st_ino, now
    ).ljust(_DIGEST_AT, b"\0")
    digest = hashlib.sha256(fixed + manifest + skeleton).digest()
    _write_all(fd, memoryview(fixed + digest + manifest + skeleton), 0)
    os.fchmod(fd, 0o444)
    os.utime(fd, ns=(now, now))


class Mapping(mmap.mmap):
    """A private copy-on-write view of a segment; the tensors over it keep it, and with it the lease, alive."""

    path: Path
    manifest: Manifest
    skeleton: bytes
    fd: int
    address: int
    delta: Mapping | None = None

    def covers(self, address: int) -> bool:
        """Whether an address lies in this view."""
        return self.address <= address < self.address + len(self)

    def manifest_names(self) -> set[str]:
        """Return the dotted names of all tensors of the model."""
        return {name for block in self.manifest.blocks for name in block.names}

    def read_ahead(self) -> None:
        """Enter all pages in the page table from a thread: a quarter of a first call would go into page faults."""
        if _libc is not None:
            # The thread gets numbers and no reference: it must not keep the lease alive. Whatever lies at the address
            # once this mapping has gone, reading it ahead does no harm.
            with suppress(RuntimeError):  # a process that is ending, or may have no more threads, does without
                _thread.start_new_thread(_read_ahead, (_libc, self.address, len(self)))  # does not wait for it to run


def _read_ahead(libc: ctypes.CDLL, address: int, nbytes: int) -> None:
    # By ctypes, which releases the interpreter lock; mmap.madvise holds it.
    libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), _MADV_POPULATE_READ)


# Views that are alive in this process, for reports: whatever tensor a caller holds, its address leads to its segment.
_alive: weakref.WeakSet[Mapping] = weakref.WeakSet()


def mapping_at(address: int) -> Mapping | None:
    """Return the mapping of this process that an address lies in."""
    return next((mapping for mapping in list(_alive) if mapping.covers(address)), None)


@dataclass(frozen=True, slots=True)
class Opened:
    """A checked header: descriptor with a lease, and what the header says."""

    fd: int
    manifest: Manifest
    skeleton: bytes
    data_offset: int
    untouched: bool


def open_segment(path: Path) -> Opened:
    """Open a segment, take a lease and check everything before its data.

    Raises:
        SegmentGoneError: there is no such file any more.
        CorruptSegmentError: it is no segment, or was truncated or altered.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise SegmentGoneError(f"{path} is gone: publish the model again, or load a version that is current") from error
    try:
        share(fd, path)
        return check(fd, path)
    except BaseException:
        os.close(fd)
        raise


def check(fd: int, path: Path) -> Opened:
    """Check everything before the data of an open segment."""
    status = os.fstat(fd)
    if status.st_uid not in (os.getuid(), 0):
        raise CorruptSegmentError(f"{path} belongs to user {status.st_uid}: its skeleton is a pickle and is not read")
    header = os.pread(fd, _HEADER, 0)
    if len(header) < _HEADER or not header.startswith(MAGIC):
        raise CorruptSegmentError(f"{path} is not a segment: it starts with {header[:8]!r}")
    _, version, _, manifest_size, skeleton_size, data_offset, size, inode, mtime = _FIXED.unpack_from(header)
    if version != FORMAT:
        raise OtherFormatError(f"{path} has format {version}, this zerocopy reads format {FORMAT}: publish it again")
    if status.st_size != size:
        raise CorruptSegmentError(f"{path} has {status.st_size} bytes instead of {size}: it was truncated or extended")
    if _HEADER + manifest_size + skeleton_size > data_offset:
        raise CorruptSegmentError(f"{path} has a header whose parts overlap")
    body = os.pread(fd, manifest_size + skeleton_size, _HEADER)
    if hashlib.sha256(header[:_DIGEST_AT] + body).digest() != header[_DIGEST_AT:]:
        raise CorruptSegmentError(f"{path} has a header or skeleton that does not match its digest")
    untouched = (status.st_ino, status.st_mtime_ns) == (inode, mtime)
    return Opened(fd, Manifest.decode(body[:manifest_size]), body[manifest_size:], data_offset, untouched)


def adopt(fd: int, path: Path) -> None:
    """Check a copy of a segment in full and seal it as a segment of its own.

    Raises:
        CorruptSegmentError: it is not what was published.
    """
    opened = check(fd, path)
    verify_file(fd, opened.manifest, path)
    seal(fd, opened.manifest.encode(), opened.skeleton, opened.data_offset, os.fstat(fd).st_size)


def map_segment(path: Path) -> Mapping:
    """Open, check and map a segment copy-on-write.

    Raises:
        SegmentGoneError: there is no such file any more.
        CorruptSegmentError: truncated, altered, or no segment.
    """
    opened = open_segment(path)
    try:
        mapping = _mapped(opened.fd, path, opened.manifest)
    except BaseException:
        os.close(opened.fd)
        raise
    mapping.skeleton = opened.skeleton
    if not opened.untouched:
        verify(mapping, mapping.manifest, path)
    return mapping


def _mapped(fd: int, path: Path, manifest: Manifest) -> Mapping:
    mapping = Mapping(fd, 0, access=mmap.ACCESS_COPY)
    mapping.path, mapping.manifest, mapping.fd = path, manifest, fd
    weakref.finalize(mapping, os.close, fd).atexit = False
    mapping.address = torch.frombuffer(mapping, dtype=torch.uint8, count=1).data_ptr()
    _alive.add(mapping)
    return mapping


def stamp(path: Path) -> dict[str, Any]:
    """Return what tells a checkpoint file, mapped in place, from one that was touched since."""
    status = path.stat()
    return {"file": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}


def map_file(manifest: Manifest, index: int) -> Mapping:
    """Map the checkpoint file that ``manifest.bases[index]`` is a stamp of, copy-on-write.

    Raises:
        SegmentGoneError: there is no such file any more.
        CorruptSegmentError: it is not what it was when the model was published.
    """
    known = manifest.bases[index]
    path = Path(known["file"])
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise SegmentGoneError(f"{path} is gone, and the model was published in place: put it back") from error
    try:
        now = stamp(path)
        if now["size"] != known["size"]:
            raise CorruptSegmentError(f"{path} has {now['size']} bytes instead of {known['size']}")
        mapping = _mapped(fd, path, manifest)
    except BaseException:
        os.close(fd)
        raise
    if now != known:
        verify(mapping, manifest, path, base=index)
    return mapping


def verify(data: mmap.mmap, manifest: Manifest, path: Path, tick: Tick = no_tick, *, base: int | None = None) -> None:
    """Hash every block that a segment stores itself, or that lies in one of its bases.

    Raises:
        CorruptSegmentError: naming the first tensor whose bytes are not those that were published.
    """
    own = [block for block in manifest.blocks if block.base == base]
    with memoryview(data) as view:
        parts = [view[block.offset : block.offset + block.nbytes] for block in own]
        hashes = hash_blocks(parts, tick)
        for part in parts:
            part.release()
    for block, digest in zip(own, hashes, strict=True):
        if digest != block.digest:
            raise CorruptSegmentError(
                f"{path}: the bytes of {', '.join(block.names) or 'an unnamed block'} "
                f"do not match their digest; the file was altered after it was published"
            )


def verify_file(fd: int, manifest: Manifest, path: Path, tick: Tick = no_tick) -> None:
    """Do the same for an open file that is not mapped."""
    with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as view:
        verify(view, manifest, path, tick)


def kept(path: Path) -> bool:
    """Whether a file is a segment that was published to stay; one of another format may have been."""
    try:
        opened = open_segment(path)
    except OtherFormatError:
        return True
    except (SegmentGoneError, CorruptSegmentError):
        return False
    os.close(opened.fd)
    return opened.manifest.keep
