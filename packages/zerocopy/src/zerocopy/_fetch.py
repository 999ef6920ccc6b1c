"""Fetch a model to another node of a Ray cluster, once per node: the first worker there makes a segment for all.

Weights pass through Ray's object store in pieces. They do not stay there, because every worker maps it read-write.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from zerocopy import _directory as places
from zerocopy._caretaker import caretaker
from zerocopy._lease import TEMPORARY, close, create, gate, opened, share
from zerocopy._segment.checking import adopt, open_segment
from zerocopy.errors import SegmentGoneError

PIECE = 16 << 20  # bytes of a model in the object store at a time, so that a store smaller than the model is enough


def _read_piece(path: str, offset: int, nbytes: int) -> Any:
    fd = opened(path, os.O_RDONLY)
    try:
        share(fd, path)  # else its publisher may be writing another version into its memory
        piece = np.empty(nbytes, dtype=np.uint8)
        return piece[: os.preadv(fd, [piece], offset)]  # type: ignore[list-item]  # an array is a buffer
    finally:
        close(fd)


# Made once, because Ray exports a function to the cluster again for every wrapper.
_READ = ray.remote(num_cpus=0, max_retries=0)(_read_piece)


@contextmanager
def fetch(model: str, source: str, node: str, here: str) -> Iterator[Path]:
    """Yield a segment of this node for a model that another node published. The first process that asks copies it.

    Args:
        model: Its name, version and digest in one word, for the file's name.
        source: Its segment file on the other node.
        node: The other node's id.
        here: This node's id.

    Yields:
        The path of the segment.

    Raises:
        SegmentGoneError: Its node or its publisher has left.
        CorruptSegmentError: The bytes that arrived are not those that were published.
    """
    folder = places.prepare(None)
    path = folder / f"{model}-{here[:8]}{places.SUFFIX}"
    turn, brought = path.with_name(f"{path.name}.gate{TEMPORARY}"), False
    try:
        with gate(turn):
            while True:
                try:
                    lease = open_segment(path).fd
                except SegmentGoneError:
                    if not places.remove_if_free(str(path)):
                        time.sleep(0.001)  # another process is removing it, and it will be gone
                        continue
                    brought = True
                    caretaker.take(turn)  # in case this process is killed meanwhile
                    lease = _bring(model, source, node, path)
                break
    finally:
        if brought:
            caretaker.publisher_done(turn)
    try:
        yield path
    finally:
        close(lease)
        if brought:
            caretaker.publisher_done(path)  # from here on it stays as long as a process of this node reads it


def _bring(model: str, source: str, node: str, path: Path) -> int:
    reader = _READ.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
    # A name of its own: a sweep may be about to remove the file of a process that was killed here.
    temporary = path.with_name(
        f"{path.name.removesuffix(places.SUFFIX)}{secrets.token_hex(4)}{places.SUFFIX}{TEMPORARY}"
    )
    caretaker.take(path)
    caretaker.take(temporary)
    try:
        fd = create(temporary)
    except BaseException:
        caretaker.publisher_done(temporary)
        caretaker.publisher_done(path)
        raise
    try:
        offset, more = 0, True
        ahead = reader.remote(source, 0, PIECE)
        while more:
            piece = ray.get(ahead)
            more = len(piece) == PIECE
            if more:
                ahead = reader.remote(source, offset + PIECE, PIECE)
            os.pwrite(fd, memoryview(piece), offset)
            offset += len(piece)
            del piece  # else the store keeps it until the next one has arrived
        adopt(fd, temporary)
        temporary.rename(path)
        caretaker.publisher_done(temporary)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        close(fd)
        caretaker.publisher_done(temporary)
        caretaker.publisher_done(path)
        if isinstance(error, ray.exceptions.RayError):
            raise SegmentGoneError(f"{model} cannot be fetched from its node: {error}") from error
        raise
    return fd
