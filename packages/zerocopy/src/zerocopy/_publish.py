"""publish and unpublish: make a model a segment that other processes can load, and give it up again."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from zerocopy import _directory as places
from zerocopy._arena import ROOM, Arena
from zerocopy._caretaker import caretaker
from zerocopy._flatten import Flat, flatten
from zerocopy._held import Publication, give_up_older, hold, release, spare, superseded_by
from zerocopy._lease import TEMPORARY, abandon, close, create, opened, typed_errors
from zerocopy._progress import Tick, bar, no_tick
from zerocopy._ref import ModelRef, current_node, local_segment, ref_of, unknown
from zerocopy._segment.checking import hash_blocks, open_segment
from zerocopy._segment.format import Manifest, model_digest
from zerocopy._segment.writing import HeaderTooLargeError, Inside, write_segment
from zerocopy.errors import SegmentGoneError, UntrustedPathError


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
    trust_remote_code: bool = False
    recycle: bool = False

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


def publish(
    model: Any,
    *,
    name: str | None = None,
    version: int | None = None,
    base: ModelRef | None = None,
    directory: str | os.PathLike[str] | None = None,
    keep: bool = False,
    progress: bool = False,
    trust_remote_code: bool = False,
    recycle: bool = False,
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
        trust_remote_code: Take along the sources of classes that transformers loaded from the checkpoint with its
            argument of this name. Loaders have to allow that too.
        recycle: Keep the memory of the version before this one, and write the next version into it if no process reads
            it then. It holds one model more. In shared memory, it takes a fifth of the time from version five on.

    Returns:
        The reference to pass to other processes.

    Raises:
        RemoteCodeError: The model has such classes, and this is not allowed.
        UnshareableError: The model holds something that has no bytes to share.
        NoSpaceError: The directory cannot hold it. Nothing was published.
        UntrustedPathError: The directory belongs to another user, or others can write it.
        UnusableDirectoryError: The system does not let this process write there.
        ValueError: The name cannot be part of a file name, the version is not newer than the current one, or `recycle`
            is passed without a name or with `keep`.

    Example:
        >>> import torch, zerocopy
        >>> ref = zerocopy.publish(torch.nn.Linear(4, 2), name="doc-publish")
        >>> ref.version, ref.nbytes
        (1, 40)
        >>> ref.load()(torch.ones(1, 4)).shape
        torch.Size([1, 2])
        >>> zerocopy.unpublish(ref)
    """
    if recycle and (name is None or keep):
        raise ValueError(
            "recycle=True is for the versions of a name that this process keeps: pass name=, and not keep="
        )
    how = Options(name, version, directory, keep, progress, base, trust_remote_code=trust_remote_code, recycle=recycle)
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
    version = nullcontext(how.version or 1) if how.name is None else places.new_version(folder, title, how.version)
    begun: tuple[Path, Path] | None = None
    try:
        with version as number:
            path = places.segment_path(folder, title, 0 if how.name is None else number)
            temporary = path.with_name(path.name + TEMPORARY)
            begun = temporary, path
            unfinished = _begin(path, temporary, how)  # within the block: an unfinished file keeps its number taken
        fd, manifest, leases = _made(make, find, how, temporary, unfinished, number, model, in_arena)
        try:
            with typed_errors(folder):
                temporary.rename(path)
            hold(path, Publication((fd, *leases), how.keep, in_arena))
        except BaseException:
            if not release(str(path)):
                for each in leases:
                    close(each)
            raise
        caretaker.publisher_done(temporary)
        if how.name is not None:
            places.make_current(folder, path)
        if how.keep:
            _sync_folder(folder)
    except BaseException:
        if begun is not None:
            _undo(*begun)
        raise
    if how.name is not None:
        give_up_older(path, recycle=how.recycle)
    return ModelRef(manifest.name, number, manifest.digest, manifest.model_nbytes, str(path), current_node())


def _undo(temporary: Path, path: Path) -> None:
    """Leave nothing of a publish that failed, or that a signal's handler ended at any moment."""
    if not release(str(path)):
        for each in (temporary, path):
            each.unlink(missing_ok=True)
        abandon(temporary)
    for each in (temporary, path):
        caretaker.publisher_done(each)
    places.settle(path)


def _begin(path: Path, temporary: Path, how: Options) -> int:
    """Make an unfinished segment and return its descriptor. The caretaker takes charge of it first."""
    if not how.keep:
        caretaker.take(temporary)
        caretaker.take(path)
    fd = spare(temporary) if how.recycle else None
    return create(temporary) if fd is None else fd


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
    unfinished: int,
    number: int,
    model: Any,
    in_arena: bool,
) -> tuple[int, Manifest, tuple[int, ...]]:
    """Make a model, unless it is made, and write its segment. Return descriptor, manifest and leases on bases."""
    fds = [unfinished]
    try:
        arena = Arena(fds[0]) if in_arena else None
        if in_arena:
            model = make(arena)
            gc.collect()  # gives back what the build used and dropped in cycles
        flat = flatten(model, trust_remote_code=how.trust_remote_code)
        name = places.name_of_class(type(model)) if how.name is None else how.name
        draft = Manifest(name, number, how.keep, "", (), (), how.source)
        used = arena is not None and arena.used
        try:
            if used and how.base is not None:
                raise HeaderTooLargeError  # what the base holds already must not stay in the file
            manifest, leases = _write(fds[0], flat, draft, find, how, arena if used else None)
        except HeaderTooLargeError:
            arena = None
            fds.insert(0, _another(temporary))  # the memory of the first lives until the copy is written
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


def _another(temporary: Path) -> int:
    """Put a new unfinished file in the place of one, in one step, and return its descriptor."""
    spare = temporary.with_name(temporary.name.replace(TEMPORARY, f".gate{TEMPORARY}"))  # a name that a sweep knows
    fd = create(spare)
    try:
        with typed_errors(temporary.parent):
            spare.rename(temporary)
    except BaseException:
        spare.unlink(missing_ok=True)
        close(fd)
        raise
    return fd


def _sync_folder(folder: Path) -> None:
    """Make new names in a folder durable."""
    fd = opened(folder, os.O_RDONLY, folder=True)
    try:
        with typed_errors(folder):
            os.fsync(fd)
    finally:
        close(fd)


def from_base(base: ModelRef | None) -> Find:
    """Return a function that finds the blocks that a base holds already; raise ValueError if it is no reference."""
    if not isinstance(base, ModelRef | None):
        raise ValueError(f"base {base!r} is no ModelRef: pass what `publish` or `current` returned")
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
    if (newer := superseded_by(ref.path)) is not None:
        raise ValueError(
            f"{ref.name} version {ref.version} was given up when version {newer} was published; "
            f"there is nothing to do: it is removed when the last process that has it loaded releases it"
        )
    path = Path(ref.path)
    head = open_segment(path)
    close(head.fd)
    if not head.manifest.keep:
        raise ValueError(
            f"{ref.name} version {ref.version} is held by the process that published it; unpublish it there"
        )
    path.unlink(missing_ok=True)
    places.settle(path)


def current(name: str, *, directory: str | os.PathLike[str] | None = None) -> ModelRef:
    """Return the reference to the newest version of a name that exists.

    Args:
        name: The name it was published under.
        directory: Where it was published; the default directory if None.

    Returns:
        The reference.

    Raises:
        UnknownNameError: Nothing is published under the name.
        UntrustedPathError: The directory belongs to another user, or others can write it.

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
        except (SegmentGoneError, UntrustedPathError):
            continue  # its publisher and readers have left, so that an older version is the newest one
    raise unknown(folder, name)


def digest(model: Any) -> str:
    """Return the digest that a model would be published with."""
    flat = flatten(model, trust_remote_code=True)
    return model_digest(flat.skeleton, hash_blocks(block.bytes_view() for block in flat.blocks))
