"""publish and unpublish: make a model a segment that other processes can load, and give it up again."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zerocopy import _directory as places
from zerocopy._caretaker import caretaker
from zerocopy._flatten import Flat, flatten
from zerocopy._lease import TEMPORARY, create, remove_if_free
from zerocopy._progress import Tick, bar, no_tick
from zerocopy._ref import ModelRef, current_node, local_segment
from zerocopy._segment.checking import hash_blocks, open_segment
from zerocopy._segment.format import Manifest, model_digest
from zerocopy._segment.writing import write_segment
from zerocopy.errors import SegmentGoneError, UnknownNameError


@dataclass(frozen=True, slots=True)
class _Publication:
    """The publisher's leases on a segment and on its bases, which keep the files there."""

    fds: tuple[int, ...]
    keep: bool
    named: bool


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


_published: dict[str, _Publication] = {}
_superseded: dict[str, int] = {}  # by path: the version that made this process give up the one there


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
    return publish_shared(
        model,
        lambda flat, tick: _shared_with(base, flat, tick),
        name=name,
        version=version,
        directory=directory,
        keep=keep,
        progress=progress,
    )


def publish_shared(
    model: Any,
    share_blocks: Callable[[Flat, Tick], Shared],
    *,
    name: str | None,
    version: int | None,
    directory: str | os.PathLike[str] | None,
    keep: bool,
    progress: bool,
) -> ModelRef:
    """Publish a model of which some blocks may lie elsewhere already. The other arguments are those of `publish`."""
    folder = places.prepare(directory)
    title = places.check_name(name) if name is not None else places.name_of_class(type(model))
    number = _next_version(folder, name, version)
    flat = flatten(model)
    if directory is None:
        places.sweep(folder)
    path = places.segment_path(folder, title, number)
    total = sum(block.nbytes for block in flat.blocks)
    with bar(f"publishing {title}", total) if progress else nullcontext(no_tick) as tick:
        # Finding shared blocks needs all digests first; without any to find, one pass both hashes and copies.
        shared = share_blocks(flat, tick)
        manifest = Manifest(title, number, keep, "", (), shared.bases)
        try:
            fd, manifest = _write(path, flat, manifest, shared, tick if shared.hashes is None else no_tick)
        except BaseException:
            for lease in shared.leases:
                os.close(lease)
            raise
    _published[str(path)] = _Publication((fd, *shared.leases), keep, name is not None)
    if name is not None:
        older = _pointed_at(folder, name)
        places.point(folder, name, path)
        if older in _published:
            _superseded[older] = number
            release(older, remove_now=False)
    return ModelRef(title, number, manifest.digest, manifest.model_nbytes, str(path), current_node())


def _write(path: Path, flat: Flat, manifest: Manifest, shared: Shared, tick: Tick) -> tuple[int, Manifest]:
    """Write and seal a segment, then make it visible. A failure or a killed process leaves nothing of it."""
    temporary = path.with_name(path.name + TEMPORARY)
    if not manifest.keep:
        caretaker.take(temporary)
        caretaker.take(path)
    fd = create(temporary)
    try:
        done = write_segment(fd, flat, manifest, known=shared.known, hashes=shared.hashes, tick=tick)
        temporary.rename(path)
    except BaseException:
        os.close(fd)
        temporary.unlink(missing_ok=True)
        caretaker.publisher_done(path)
        raise
    finally:
        caretaker.publisher_done(temporary)
    return fd, done


def _next_version(folder: Path, name: str | None, version: int | None) -> int:
    newest = 0
    if name is not None:
        try:
            newest = current(name, directory=folder).version
        except (UnknownNameError, SegmentGoneError):
            newest = 0
    if version is None:
        return newest + 1
    if version <= newest:
        raise ValueError(f"version {version} of {name!r} is not newer than the current one, {newest}")
    return version


def _pointed_at(folder: Path, name: str) -> str:
    try:
        return str(places.current_path(folder, name))
    except UnknownNameError:
        return ""


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
            os.close(leases.pop())  # nothing of the base itself is used: it may be removed
        leases.extend(_lease(sources[index]) for index in used if index != 0 and "file" not in sources[index])
    except BaseException:
        for fd in leases:
            os.close(fd)
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
    if ref.path in _published:
        release(ref.path)
        return
    if ref.path in _superseded:
        raise ValueError(
            f"{ref.name} version {ref.version} was given up when version {_superseded[ref.path]} was published; "
            f"there is nothing to do: it is removed when the last process that has it loaded releases it"
        )
    path = Path(ref.path)
    opened = open_segment(path)
    keep = opened.manifest.keep
    os.close(opened.fd)
    if not keep:
        raise ValueError(
            f"{ref.name} version {ref.version} is held by the process that published it; unpublish it there"
        )
    path.unlink(missing_ok=True)
    places.drop_pointer(path.parent, ref.name, path)


def release(path: str, *, remove_now: bool = True) -> None:
    """Drop the publisher's leases.

    Args:
        path: The segment.
        remove_now: Try to remove the file at once. Otherwise the caretaker removes it.
    """
    publication = _published.pop(path)
    for fd in publication.fds:
        os.close(fd)
    if publication.keep:
        Path(path).unlink(missing_ok=True)
    else:
        if remove_now:
            remove_if_free(Path(path))
        caretaker.publisher_done(Path(path))
    if publication.named:
        places.drop_pointer(Path(path).parent, Path(path).name.rsplit("@", 1)[0], Path(path))


def current(name: str, *, directory: str | os.PathLike[str] | None = None) -> ModelRef:
    """Return the reference to the current version of a name.

    Args:
        name: The name it was published under.
        directory: Where it was published; the default directory if None.

    Returns:
        The reference.

    Raises:
        UnknownNameError: Nothing is published under the name.
        SegmentGoneError: Its publisher and readers have all left.

    Example:
        >>> import torch, zerocopy
        >>> ref = zerocopy.publish(torch.nn.Linear(4, 2), name="doc-current")
        >>> zerocopy.current("doc-current") == ref
        True
        >>> zerocopy.unpublish(ref)
    """
    folder = places.default_directory() if directory is None else Path(directory).absolute()
    while True:
        path = places.current_path(folder, name)
        try:
            opened = open_segment(path)
        except SegmentGoneError:
            if _pointed_at(folder, name) != str(path):
                continue  # a newer version took its place while we looked
            raise
        os.close(opened.fd)
        manifest = opened.manifest
        return ModelRef(name, manifest.version, manifest.digest, manifest.model_nbytes, str(path), current_node())


def digest(model: Any) -> str:
    """Return the digest that a model would be published with."""
    flat = flatten(model)
    return model_digest(flat.skeleton, hash_blocks(block.bytes_view() for block in flat.blocks))
