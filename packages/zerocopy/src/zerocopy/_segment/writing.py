"""Write a model into a segment file: reserve the space, copy and hash the blocks, then seal the header."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from zerocopy import _window
from zerocopy._flatten import ALIGNMENT, Flat
from zerocopy._progress import Tick, no_tick
from zerocopy._segment.checking import hash_blocks
from zerocopy._segment.copying import Job, copy_blocks
from zerocopy._segment.format import HEADER, PAGE, Manifest, Placed, model_digest, round_up, seal
from zerocopy.errors import NoSpaceError


class Inside(NamedTuple):
    """The blocks that a file holds already.

    Args:
        offsets: For each block its place in the file, or None for one to write.
        room: Bytes before the first such place.
        end: The end of all such places.
    """

    offsets: Sequence[int | None]
    room: int
    end: int


class HeaderTooLargeError(Exception):
    """Manifest and skeleton are larger than the room that was left for them."""


def write_segment(
    fd: int,
    flat: Flat,
    manifest: Manifest,
    *,
    known: Sequence[tuple[int, int] | None] | None = None,
    hashes: Sequence[str] | None = None,
    inside: Inside | None = None,
    tick: Tick = no_tick,
) -> Manifest:
    """Write a model into an empty open file and seal it.

    Args:
        fd: Open for reading and writing. Nothing is visible until the caller renames it.
        flat: The model.
        manifest: Name, version, keep and bases. Blocks and digest are filled in here.
        known: For each block (index of base, offset in it) where a base already holds its bytes, else None.
        hashes: The blocks' digests where the caller has them already.
        inside: What the file holds already.
        tick: Called with the size of every piece of the model that is written.

    Returns:
        The complete manifest.

    Raises:
        NoSpaceError: The file system cannot hold it.
        HeaderTooLargeError: Manifest and skeleton do not fit into the room.
    """
    count = len(flat.blocks)
    places, blank = known or [None] * count, ["0" * 32] * count
    there = inside.offsets if inside is not None else [None] * count
    draft = replace(manifest, digest="0" * 64, blocks=_place(flat, places, there, blank, 1 << 52))
    data_offset = round_up(HEADER + len(draft.encode()) + len(flat.skeleton), PAGE)
    if inside is not None:
        if data_offset > inside.room:
            raise HeaderTooLargeError
        data_offset = inside.room
    first = max(data_offset, inside.end if inside is not None else 0)
    placed = _place(flat, places, there, blank, first)
    size = max([first, *(block.offset + block.nbytes for block in placed if block.base is None)])
    try:
        _reserve(fd, first if inside is not None else 0, first, size)
        own = _write_blocks(fd, size, flat, placed, there, tick)
        digests = own if hashes is None else list(hashes)
        final = _place(flat, places, there, digests, first)
        done = replace(manifest, digest=model_digest(flat.skeleton, digests), blocks=final)
        seal(fd, done, flat.skeleton, data_offset, size)
    except OSError as error:
        raise NoSpaceError(
            error.errno,
            f"no room for a segment of {size} bytes ({error.strerror}); nothing was published: "
            "free some memory, or pass directory= to publish on disk",
        ) from error
    return done


def _write_blocks(
    fd: int, size: int, flat: Flat, placed: Sequence[Placed], there: Sequence[int | None], tick: Tick
) -> list[str]:
    """Write the blocks that no base holds, unless they are in the file already. Return the digest of each."""
    own = [each for each in zip(flat.blocks, placed, there, strict=True) if each[1].base is None]
    copied = iter(copy_blocks(fd, size, [Job(block, place.offset) for block, place, at in own if at is None], tick))
    return [next(copied) if at is None else hash_blocks([block.bytes_view()], tick)[0] for block, _, at in own]


def _place(
    flat: Flat,
    known: Sequence[tuple[int, int] | None],
    inside: Sequence[int | None],
    hashes: Sequence[str],
    offset: int,
) -> tuple[Placed, ...]:
    placed = []
    for block, where, at, digest in zip(flat.blocks, known, inside, hashes, strict=True):
        if where is not None or at is not None:
            base, there = where if where is not None else (None, at or 0)
            placed.append(Placed(there, block.nbytes, digest, base, block.names))
            continue
        placed.append(Placed(offset, block.nbytes, digest, None, block.names))
        offset = round_up(offset + block.nbytes, ALIGNMENT)
    return tuple(placed)


def _reserve(fd: int, start: int, first: int, size: int) -> None:
    """Give a file its size, and reserve its space from `start` on, so that a full file system is an error early.

    Of a new file in shared memory, only what lies before the first block is reserved. To take a page and fill it in
    one step takes less time, and gives the same error.
    """
    os.ftruncate(fd, size)
    taken = os.fstat(fd).st_blocks * 512
    end = first if taken == 0 and _window.in_shared_memory(fd) else size
    if hasattr(os, "posix_fallocate") and end > start and taken < size:  # the memory of an older version may be whole
        os.posix_fallocate(fd, start, end - start)
