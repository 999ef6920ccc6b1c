"""publish and unpublish: make a model a segment that other processes can load, and give it up again."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from zerocopy import _directory as places
from zerocopy._arena import ROOM, Arena
from zerocopy._caretaker import caretaker
from zerocopy._flatten import Flat, flatten
from zerocopy._lease import TEMPORARY, close, create
from zerocopy._progress import Tick, bar, no_tick
from zerocopy._ref import ModelRef, current_node, local_segment, ref_of, unknown
from zerocopy._segment.checking import hash_blocks, kept, open_segment
from zerocopy._segment.format import Manifest, model_digest
from zerocopy._segment.writing import HeaderTooLargeError, Inside, write_segment
from zerocopy.errors import SegmentGoneError


@dataclass(frozen=True, slots=True)
class _Publication:
    """The publisher's leases on a segment and on its bases, which keep the files there."""

    fds: tuple[int, ...]
    keep: bool


@dataclass(frozen=True, slots=True)
class Options:
    """How to publish: the arguments of `publish`, and what `share` compares."""

    name: str | None = None
    version: int | None = None
    directory: str | os.PathLike[str] | None = None
    keep: bool = False
    progress: bool = False
    base: ModelRef | None = None
    source: str = ""
    tick: Tick | None = None

    def ticking(self, title: str, total: int) -> AbstractContextManager[Tick]:
        """Return a context in which progress is shown, if it is wanted."""
        if self.tick is not None:
            return nullcontext(self.tick)
        return bar(title, total) if self.progress else nullcontext(no_tick)


@dataclass(frozen=True, slots=True)
class Shared:
    """The blocks of a model that are stored elsewhere already.

    Args:
        known: For each block where it lies, as (index in bases, offset), or None.
        hashes: The blocks' digests, where they had to be computed.
        bases: As in the manifest.
        leases: Descriptors that keep those bases there.
    """

    known: tuple[tuple[int, int] | None, ...]
    hashes: tuple[str, ...] | None = None
    bases: tuple[dict[str, Any], ...] = ()
    leases: tuple[int, ...] = ()


Find = Callable[[Flat, Tick], Shared]
_lock = threading.Lock()
_published: dict[str, _Publication] = {}
_superseded: dict[str, int] = {}  # by path: the version that made this process give up the one there


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()  # another thread may have held the old one at the fork
    _published.clear()  # the descriptors were closed at the fork: what the parent published is the parent's
    _superseded.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def publish(
    model: Any,
    *,
    name: str | None = None,
    version: int | None = None,
    base: ModelRef | None = None,
    directory: str | os.PathLike[str] | None = None,
    keep: bool = False,
    progress: bool = False,
) -> ModelRef:
    """Write a model's weights where every process of this machine can map them.

    The segment stays as long as this process lives or any process has the model loaded, however those processes end.
    Publishing a newer version under the same name gives up the older one, which goes when its last reader leaves.

    Args:
        model: A module, or any picklable object with tensors in it.
        name: The name under which `current` and `follow` find it. Without one, only the returned reference leads to it.
        version: A number greater than the current version's; the next one if None.
        base: A published model. Weights that it holds already, byte for byte, are not stored again.
        directory: Where to put the segment: shared memory by default, or any folder.
        keep: Leave the segment there when all processes have ended, until `unpublish`.
        progress: Show a bar on standard error (needs the extra `cli`).

    Returns:
        The reference to pass to other processes.

    Raises:
        UnshareableError: The model holds something that has no bytes to share.
        NoSpaceError: The directory cannot hold it. Nothing was published.
        ValueError: The name cannot be part of a file name, or the version is not newer than the current one.

    Example:
        >>> import torch, zerocopy
        >>> ref = zerocopy.publish(torch.nn.Linear(4, 2), name="doc-publish")
        >>> ref.version, ref.nbytes
        (1, 40)
        >>> ref.load()(torch.ones(1, 4)).shape
        torch.Size([1, 2])
        >>> zerocopy.unpublish(ref)
    """
    how = Options(name, version, directory, keep, progress, base)
    return publish_made(lambda _arena: model, from_base(base), how, in_arena=False)


def publish_made(make: Callable[[Arena | None], Any], find: Find, how: Options, *, in_arena: bool) -> ModelRef:
    """Publish the model that a function makes.

    Args:
        make: Returns the model. It may make tensors in the arena that it gets.
        find: Returns which of its blocks lie elsewhere already.
        how: The arguments of `publish`.
        in_arena: Whether there is an arena.
    """
    folder = places.prepare(how.directory)
    title = "model" if how.name is None else places.check_name(how.name)
    model = None if in_arena else make(None)
    places.sweeper.step(folder)
    number = (how.version or 1) if how.name is None else places.give_out_version(folder, title, how.version)
    path = places.segment_path(folder, title, 0 if how.name is None else number)
    temporary = path.with_name(path.name + TEMPORARY)
    if not how.keep:
        caretaker.take(temporary)
        caretaker.take(path)
    try:
        fd, manifest, leases = _made(make, find, how, temporary, number, model, in_arena)
        try:
            temporary.rename(path)
        except BaseException:
            close(fd)
            raise
    except BaseException:
        caretaker.publisher_done(path)
        places.settle(path)
        raise
    finally:
        caretaker.publisher_done(temporary)
    with _lock:
        _published[str(path)] = _Publication((fd, *leases), how.keep)
    if how.name is not None:
        places.make_current(folder, path)
        _give_up_older(path)
    if how.keep:
        _sync_folder(folder)
    return ModelRef(manifest.name, number, manifest.digest, manifest.model_nbytes, str(path), current_node())


def _write(
    fd: int, flat: Flat, manifest: Manifest, find: Find, how: Options, arena: Arena | None
) -> tuple[Manifest, tuple[int, ...]]:
    """Write and seal a segment. Return the manifest and the leases on its bases."""
    total = sum(block.nbytes for block in flat.blocks)
    with how.ticking(f"publishing {manifest.name}", total) as tick:
        # Finding shared blocks needs all digests first; without any to find, one pass both hashes and copies.
        shared = find(flat, tick)
        manifest = replace(manifest, bases=shared.bases)
        rest = tick if shared.hashes is None else no_tick
        try:
            inside = None
            if arena is not None:
                places_in_file = [arena.offset_of(block.storage.data_ptr() + block.start) for block in flat.blocks]
                inside = Inside(places_in_file, ROOM, arena.end)
            done = write_segment(
                fd, flat, manifest, known=shared.known, hashes=shared.hashes, inside=inside, tick=rest
            )  # fmt: skip
            return done, shared.leases
        except BaseException:
            for lease in shared.leases:
                close(lease)
            raise


def _made(
    make: Callable[[Arena | None], Any],
    find: Find,
    how: Options,
    temporary: Path,
    number: int,
    model: Any,
    in_arena: bool,
) -> tuple[int, Manifest, tuple[int, ...]]:
    """Make a model, unless it is made, and write its segment. Return descriptor, manifest and leases on bases."""
    fds = [create(temporary)]
    try:
        arena = Arena(fds[0]) if in_arena else None
        if in_arena:
            model = make(arena)
            gc.collect()  # gives back what the build used and dropped in cycles
        flat = flatten(model)
        name = places.name_of_class(type(model)) if how.name is None else how.name
        draft = Manifest(name, number, how.keep, "", (), (), how.source)
        used = arena is not None and arena.used
        try:
            if used and how.base is not None:
                raise HeaderTooLargeError  # what the base holds already must not stay in the file
            manifest, leases = _write(fds[0], flat, draft, find, how, arena if used else None)
        except HeaderTooLargeError:
            arena = None
            temporary.unlink()  # its memory lives until the copy is written
            fds.insert(0, create(temporary))
            manifest, leases = _write(fds[0], flat, draft, find, how, None)
        if arena is not None:
            arena.seal()
    except BaseException:
        temporary.unlink(missing_ok=True)
        for fd in fds:
            close(fd)
        raise
    for fd in fds[1:]:
        close(fd)
    return fds[0], manifest, leases


def _give_up_older(path: Path) -> None:
    """Drop this process's leases on older versions of a segment's name."""
    name, number = places.parse(path.name) or ("", 0)
    with _lock:
        older = []
        for other in map(Path, _published):
            parsed = places.parse(other.name)
            if parsed is not None and other.parent == path.parent and parsed[0] == name and parsed[1] < number:
                older.append(str(other))
                _superseded[str(other)] = number
    for each in older:
        release(each, remove_now=False)


def _sync_folder(folder: Path) -> None:
    """Make new names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def from_base(base: ModelRef | None) -> Find:
    """Return a function that finds the blocks that a base holds already."""
    return lambda flat, tick: _shared_with(base, flat, tick)


def _shared_with(base: ModelRef | None, flat: Flat, tick: Tick) -> Shared:
    """Find the blocks that a base, or a base of that base, holds already; take leases on the segments used."""
    if base is None:
        return Shared((None,) * len(flat.blocks))
    with local_segment(base) as path:
        opened = open_segment(path)
    sources = [asdict(base), *opened.manifest.bases]
    held = {
        (block.digest, block.nbytes): (0 if block.base is None else block.base + 1, block.offset)
        for block in opened.manifest.blocks
    }
    leases = [opened.fd]
    try:
        hashes = hash_blocks((block.bytes_view() for block in flat.blocks), tick)
        found = [held.get((digest, block.nbytes)) for digest, block in zip(hashes, flat.blocks, strict=True)]
        used = sorted({where[0] for where in found if where is not None})
        if 0 not in used:
            close(leases.pop())  # nothing of the base itself is used: it may be removed
        leases.extend(_lease(sources[index]) for index in used if index != 0 and "file" not in sources[index])
    except BaseException:
        for fd in leases:
            close(fd)
        raise
    renumbered = tuple(None if where is None else (used.index(where[0]), where[1]) for where in found)
    return Shared(renumbered, tuple(hashes), tuple(sources[index] for index in used), tuple(leases))


def _lease(fields: dict[str, Any]) -> int:
    with local_segment(ModelRef(**fields)) as path:
        return open_segment(path).fd


def unpublish(ref: ModelRef) -> None:
    """Give up a published model. Its file is removed now, or when the last process that has it loaded releases it.

    Args:
        ref: What `publish` returned, in the process that published it. A model published with `keep=True` can be
            removed from any process.

    Raises:
        ValueError: Another process holds it, or this one has given it up already by publishing a newer version.
        SegmentGoneError: It is gone already.

    Example:
        >>> import torch, zerocopy
        >>> ref = zerocopy.publish(torch.nn.Linear(4, 2))
        >>> zerocopy.unpublish(ref)
    """
    if release(ref.path):
        return
    if ref.path in _superseded:
        raise ValueError(
            f"{ref.name} version {ref.version} was given up when version {_superseded[ref.path]} was published; "
            f"there is nothing to do: it is removed when the last process that has it loaded releases it"
        )
    path = Path(ref.path)
    if not kept(path):
        close(open_segment(path).fd)  # raises if it is gone or damaged
        raise ValueError(
            f"{ref.name} version {ref.version} is held by the process that published it; unpublish it there"
        )
    path.unlink(missing_ok=True)
    places.settle(path)


def release(path: str, *, remove_now: bool = True) -> bool:
    """Drop the publisher's leases and return whether this process had any.

    Args:
        path: The segment.
        remove_now: Try to remove the file at once. Otherwise the caretaker removes it.
    """
    with _lock:
        publication = _published.pop(path, None)
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


def current(name: str, *, directory: str | os.PathLike[str] | None = None) -> ModelRef:
    """Return the reference to the newest version of a name that exists.

    Args:
        name: The name it was published under.
        directory: Where it was published; the default directory if None.

    Returns:
        The reference.

    Raises:
        UnknownNameError: Nothing is published under the name.

    Example:
        >>> import torch, zerocopy
        >>> ref = zerocopy.publish(torch.nn.Linear(4, 2), name="doc-current")
        >>> zerocopy.current("doc-current") == ref
        True
        >>> zerocopy.unpublish(ref)
    """
    folder = places.folder_of(directory)
    for path in places.candidates(folder, name):
        try:
            return ref_of(path)
        except SegmentGoneError:
            continue  # its publisher and readers have left, so that an older version is the newest one
    raise unknown(folder, name)


def digest(model: Any) -> str:
    """Return the digest that a model would be published with."""
    flat = flatten(model)
    return model_digest(flat.skeleton, hash_blocks(block.bytes_view() for block in flat.blocks))
