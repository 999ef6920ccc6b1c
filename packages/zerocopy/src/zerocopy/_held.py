"""What this process publishes: its leases, the newest version of each name, and the memory kept for the next one."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from zerocopy import _directory as places
from zerocopy._caretaker import caretaker
from zerocopy._lease import close, pass_on, take_over


@dataclass(frozen=True, slots=True)
class Publication:
    """The publisher's leases on a segment and on its bases, which keep the files there.

    Args:
        fds: Their descriptors, the segment's first.
        keep: Whether the segment outlives this process.
        mapped: Whether this process may have tensors over the segment beside its leases, as it was built there.
    """

    fds: tuple[int, ...]
    keep: bool
    mapped: bool


_lock = threading.Lock()
_published: dict[str, Publication] = {}
_newest: dict[tuple[str, str], str] = {}  # by folder and name: the newest version that this process publishes
_spares: dict[tuple[str, str], str] = {}  # by folder and name: the older version whose memory the next one gets
_superseded: dict[str, int] = {}  # by path: the version that made this process give up the one there
_REMEMBERED = 1000  # superseded versions; the oldest are forgotten


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()  # another thread may have held the old one at the fork
    _published.clear()  # the descriptors were closed at the fork: what the parent published is the parent's
    _newest.clear()
    _spares.clear()
    _superseded.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def hold(path: Path, publication: Publication) -> None:
    """Note what this process publishes at a path."""
    with _lock:
        _published[str(path)] = publication
        pass_on(publication.fds)


def superseded_by(path: str) -> int | None:
    """Return the version that made this process give up the one at a path."""
    return _superseded.get(path)


def spare(temporary: Path) -> int | None:
    """Make the older version that this process keeps an unfinished segment, unless another process reads it."""
    with _lock:
        path = _spares.pop((str(temporary.parent), temporary.name.rpartition("@")[0]), "")
        publication = _published.get(path)
        if publication is not None and not (publication.keep or publication.mapped):
            del _published[path]
    if publication is None:
        return None
    if publication.keep or publication.mapped:
        release(path, remove_now=False)
        return None
    fd, *bases = publication.fds
    taken = False
    try:
        taken = take_over(fd, path, temporary)
        return fd if taken else None
    finally:
        for each in bases if taken else publication.fds:
            close(each)
        caretaker.publisher_done(Path(path))


def give_up_older(path: Path, *, recycle: bool) -> None:
    """Drop this process's lease on the older one of two versions of a name: usually the one before this one.

    With `recycle`, that lease stays, and the one on a still older version goes. The older one of the two is this one if
    another thread has published a newer version meanwhile.
    """
    name, number = places.parse(path.name) or ("", 0)
    with _lock:
        key = str(path.parent), name
        other = _newest.get(key)
        last = (places.parse(Path(other).name) or ("", 0))[1] if other is not None else 0
        older, newest = (other, str(path)) if number > last else (str(path), other)
        _newest[key] = newest or ""
        if older is None:
            return
        _superseded[older] = max(number, last)
        while len(_superseded) > _REMEMBERED:
            del _superseded[next(iter(_superseded))]
        still_older = _spares.pop(key, None)
        if recycle:
            _spares[key] = older
    for each in (still_older, None if recycle else older):
        if each is not None:
            release(each, remove_now=False)


def release(path: str, *, remove_now: bool = True) -> bool:
    """Drop the publisher's leases and return whether this process had any.

    Args:
        path: The segment.
        remove_now: Try to remove the file at once. Otherwise the caretaker removes it.
    """
    older = None
    with _lock:
        publication = _published.pop(path, None)
        key = str(Path(path).parent), Path(path).name.rpartition("@")[0]
        if _newest.get(key) == path:
            del _newest[key]
            older = _spares.pop(key, None)
    if older is not None:
        release(older)  # first, so that it does not become the current version
    if publication is None:
        return False
    for fd in publication.fds:
        close(fd)
    if publication.keep:
        Path(path).unlink(missing_ok=True)
        places.settle(Path(path))
    else:
        if remove_now:
            places.remove_if_free(path)
        caretaker.publisher_done(Path(path))
    return True
