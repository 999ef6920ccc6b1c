"""Remember which segment a loaded model came from, and which of its tensors it shares no more.

A tensor that is replaced, by `.half()` or by hand, releases its block of the mapping. The process notes that in a small
anonymous file, which `report` finds among its descriptors from any process. The file ends with the process.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

from zerocopy._segment.format import Manifest

NOTE = "zerocopy-released"  # the name of the anonymous file
_origins: dict[int, Origin] = {}  # by the model's id


class Origin:
    """Where one model came from.

    Args:
        model: The model.
        path: Its segment.
        manifest: The segment's manifest.
        views: The mapped bytes of each block, held by the tensors over them alone once this returns.
    """

    def __init__(self, model: Any, path: str, manifest: Manifest, views: Sequence[memoryview]) -> None:
        self.manifest = manifest
        self._path = path
        self._note: int | None = None
        self.model = weakref.ref(model, partial(_forget, id(model)))
        self._index: dict[int, int] = {}  # of a view's reference, made when the first view is released
        released = partial(_released, weakref.ref(self))
        self._views = [weakref.ref(view, released) for view in views]  # thousands: one callback for all of them

    def released(self, view: weakref.ref[memoryview]) -> None:
        """Note that the tensors over a block are gone."""
        if not self._index:
            self._index = {id(each): index for index, each in enumerate(self._views)}
        block = self.manifest.blocks[self._index[id(view)]]
        if block.nbytes:
            self.append(f"{block.nbytes} {', '.join(block.names) or 'an unnamed block'}\n".encode())

    def append(self, line: bytes) -> None:
        """Add a line to the note."""
        if self._note is None:
            if not hasattr(os, "memfd_create"):
                return
            try:
                self._note = os.memfd_create(NOTE)
            except OSError:  # no descriptor is left: the report lacks this process
                return
            os.write(self._note, os.fsencode(self._path) + b"\n")
        os.write(self._note, line)

    def close(self) -> None:
        """End the note."""
        if self._note is not None:
            os.close(self._note)
            self._note = None

    def separate(self) -> None:
        """Give a forked child a note of its own."""
        if self._note is not None:
            content = os.pread(self._note, os.fstat(self._note).st_size, 0)
            self.close()
            self.append(b"")
            if self._note is not None:
                os.ftruncate(self._note, 0)
                os.pwrite(self._note, content, 0)
                os.lseek(self._note, 0, os.SEEK_END)


def _released(mine: weakref.ref[Origin], view: weakref.ref[memoryview]) -> None:
    origin = mine()
    if origin is not None and origin.model() is not None:
        origin.released(view)


def _forget(key: int, _model: object) -> None:
    origin = _origins.pop(key, None)
    if origin is not None:
        origin.close()


def remember(model: Any, path: str, manifest: Manifest, views: Sequence[memoryview]) -> None:
    """Remember where a model came from, if it can be referred to weakly (a dict cannot)."""
    try:
        origin = Origin(model, path, manifest, views)
    except TypeError:
        return
    _origins[id(model)] = origin


def origin_of(model: object) -> Manifest | None:
    """Return the manifest of the segment that a model was loaded from, or None for any other object."""
    origin = _origins.get(id(model))
    return None if origin is None else origin.manifest


def _after_fork_in_child() -> None:
    for origin in list(_origins.values()):
        origin.separate()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
