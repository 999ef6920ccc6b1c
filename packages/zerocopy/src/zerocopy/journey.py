"""A model's one journey to another node of a Ray cluster: the first worker that asks there makes a segment for all.

Weights do not live in Ray's object store, which every worker maps read-write: they pass through it, in pieces.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from zerocopy import directory as places
from zerocopy.errors import SegmentGoneError
from zerocopy.lease import TEMPORARY, caretaker, create, gate
from zerocopy.segment import adopt, open_segment

PIECE = 16 << 20  # bytes of a model in the object store at a time, so that a store smaller than the model is enough


def _read_piece(path: str, offset: int, nbytes: int) -> Any:
    with open(path, "rb") as file:
        return np.fromfile(file, dtype=np.uint8, count=nbytes, offset=offset)


# Made once: Ray exports a function to the cluster anew for every wrapper.
_READ = ray.remote(num_cpus=0, max_retries=0)(_read_piece)


@contextmanager
def fetch(model: str, source: str, node: str, here: str) -> Iterator[Path]:
    """Give a segment of this node for a model that another node published; the first process to ask brings it.

    Args:
        model: its name, version and content in one word, for the file's name.
        source: its segment file over there.
        node: that node's id.
        here: this node's id.

    Raises:
        SegmentGoneError: its node or its publisher has left.
        CorruptSegmentError: what arrived is not what was published.
    """
    folder = places.prepare(None)
    path = folder / f"{model}-{here[:8]}{places.SUFFIX}"
    with gate(path.with_name(f"{path.name}.gate{TEMPORARY}")):
        try:
            lease, brought = open_segment(path).fd, False
        except SegmentGoneError:
            lease, brought = _bring(model, source, node, path), True
    try:
        yield path
    finally:
        os.close(lease)
        if brought:
            caretaker.publisher_done(path)  # from here on it stays as long as somebody on this node reads it


def _bring(model: str, source: str, node: str, path: Path) -> int:
    reader = _READ.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
    temporary = path.with_name(path.name + TEMPORARY)
    caretaker.take(path)
    temporary.unlink(missing_ok=True)  # of a process that was killed on the way
    fd = create(temporary)
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
            del piece  # or the store keeps it until the next one has arrived
        adopt(fd, temporary)
        temporary.rename(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        os.close(fd)
        caretaker.publisher_done(path)
        if isinstance(error, ray.exceptions.RayError):
            raise SegmentGoneError(f"{model} cannot be had from its node: {error}") from error
        raise
    return fd
