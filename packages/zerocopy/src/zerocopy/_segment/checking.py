"""Open segment files under a lease and verify that their bytes are those that were published."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash

from zerocopy._lease import close, opened, share
from zerocopy._progress import Tick, no_tick
from zerocopy._segment.format import Manifest, Opened, check, removable, seal
from zerocopy.errors import CorruptSegmentError, OtherFormatError, SegmentGoneError

_STEP = 64 << 20  # bytes hashed between two reports of progress


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


def open_segment(path: Path | str) -> Opened:
    """Open a segment, take a lease and check everything before its data.

    Raises:
        SegmentGoneError: The file does not exist any more.
        CorruptSegmentError: It is not a segment, or was truncated or altered.
        UntrustedPathError: It belongs to another user, can be written by others, or is no plain file.
    """
    try:
        fd = opened(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SegmentGoneError(f"{path} is gone: publish the model again, or load a version that is current") from error
    try:
        share(fd, path)
        return check(fd, path)
    except BaseException:
        close(fd)
        raise


def verify(data: mmap.mmap, manifest: Manifest, path: Path, tick: Tick = no_tick, *, base: int | None = None) -> None:
    """Hash every block that a segment stores itself, or that lies in one of its bases.

    Raises:
        CorruptSegmentError: The bytes of a tensor are not those that were published. The message names the first one.
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
    """Verify the blocks that an open, unmapped segment stores itself."""
    with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as view:
        verify(view, manifest, path, tick)


def adopt(fd: int, path: Path) -> None:
    """Verify a copy of a segment in full and seal it as a segment of its own.

    Raises:
        CorruptSegmentError: Its bytes are not those that were published.
    """
    head = check(fd, path)
    verify_file(fd, head.manifest, path)
    seal(fd, head.manifest, head.skeleton, head.data_offset, os.fstat(fd).st_size)


def kept(path: Path) -> bool:
    """Return whether a file is a segment that was published with `keep=True`, or may be one of another format.

    Raises:
        FileNotFoundError: It does not exist.
        ZerocopyError: It cannot be opened, or is not to be believed.
    """
    fd = opened(path, os.O_RDONLY)  # without a lease: looking at a file must not keep it
    try:
        return not removable(fd) and check(fd, path).manifest.keep
    except OtherFormatError:
        return True
    except CorruptSegmentError:
        return False
    finally:
        close(fd)


def stamp(path: Path) -> dict[str, Any]:
    """Return what identifies the present state of a checkpoint file that is mapped in place."""
    status = path.stat()
    return {"file": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}
