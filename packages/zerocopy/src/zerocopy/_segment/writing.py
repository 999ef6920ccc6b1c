"""Write a model into a segment file: reserve the space, copy and hash the blocks, then seal the header."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import xxhash

from zerocopy._flatten import ALIGNMENT, Flat
from zerocopy._progress import Tick, no_tick
from zerocopy._segment.format import HEADER, PAGE, Manifest, Placed, model_digest, round_up, seal, write_all
from zerocopy.errors import NoSpaceError

_PIECE = 1 << 20  # bytes copied and then hashed at a time, so that the hash reads them from the processor's cache


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
        fd: Open for reading and writing. Nothing is visible until the caller renames it.
        flat: The model.
        manifest: Name, version, keep and bases. Blocks and digest are filled in here.
        known: For each block (index of base, offset in it) where a base already holds its bytes, else None.
        hashes: The blocks' digests where the caller has them already.
        tick: Called with the size of every piece of the model that is written.

    Returns:
        The complete manifest.

    Raises:
        NoSpaceError: The file system cannot hold it.
    """
    places = known or [None] * len(flat.blocks)
    blank = ["0" * 32] * len(flat.blocks)
    draft = replace(manifest, digest="0" * 64, blocks=_place(flat, places, blank, 1 << 52))
    data_offset = round_up(HEADER + len(draft.encode()) + len(flat.skeleton), PAGE)
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
        offset = round_up(offset + block.nbytes, ALIGNMENT)
    return tuple(placed)


def _reserve(fd: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)  # a full file system is an error here and not a signal later
    else:
        os.ftruncate(fd, size)


def _copy(fd: int, view: memoryview, offset: int, tick: Tick) -> str:
    """Write a block and hash each piece while it is in the processor's cache. Return the digest."""
    digest = xxhash.xxh3_128()
    for start in range(0, len(view), _PIECE):
        piece = view[start : start + _PIECE]
        write_all(fd, piece, offset + start)
        digest.update(piece)
        tick(len(piece))
    return digest.hexdigest()
