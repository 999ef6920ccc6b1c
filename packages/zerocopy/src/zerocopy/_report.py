"""report: which models are published on this machine, which processes map them, and which bytes are private."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from zerocopy import _directory as places
from zerocopy._device.keeper import kept
from zerocopy._lease import close, opened
from zerocopy._origin import NOTE
from zerocopy._pages import PAGE, private_pages
from zerocopy._segment.format import Manifest, check
from zerocopy.errors import SegmentGoneError, ZerocopyError

_LONGEST_NOTE = 1 << 22  # bytes
_LISTINGS = 3  # of processes: a worker that its server starts in place of another one is in a later listing
_LINE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) \S+ \d+\s+(.*)$")


def size(nbytes: int) -> str:
    """Return a number of bytes in MiB or KiB."""
    return f"{nbytes / 2**20:.1f} MiB" if nbytes >= 1 << 19 else f"{nbytes / 2**10:.1f} KiB"


@dataclass(frozen=True, slots=True)
class WrittenTensor:
    """A tensor that lies on pages that a process has written.

    Args:
        name: Dotted name.
        private_bytes: Size of those pages within the tensor, an upper bound on what was written.
    """

    name: str
    private_bytes: int


@dataclass(frozen=True, slots=True)
class View:
    """One process's view of one segment, in bytes.

    Args:
        pid: The process.
        command: Its command line, shortened.
        segment: File name of the segment.
        mapped: Size of the mapping.
        resident: Pages of it in memory (Rss).
        proportional: Its share of them (Pss): resident pages divided among all processes that map them.
        private: Pages that only this process has because it wrote to them.
        private_elsewhere: Memory outside segments that its end would free (Uss): its heap, its libraries' own pages.
        written: The tensors on the private pages.
        released: The tensors that its model does not take from the segment any more, with their published bytes: they
            were replaced, as by `.half()` or `.to()`, or removed.
    """

    pid: int
    command: str
    segment: str
    mapped: int
    resident: int
    proportional: int
    private: int
    private_elsewhere: int
    written: tuple[WrittenTensor, ...]
    released: tuple[WrittenTensor, ...] = ()

    def __str__(self) -> str:
        """Return one line with the process's memory in the segment and the tensors that it wrote."""
        shares = f"{size(self.resident)} in memory, its share {size(self.proportional)}"
        line = f"{self.pid} {self.command}".strip() + f": {shares}; wrote {self.wrote() or 'nothing'}"
        return line + (f"; shares no more {self.replaced()}" if self.released else "")

    def wrote(self) -> str:
        """Return the names of the tensors that it wrote, with the bytes of their pages; empty if there are none."""
        return _named(self.written)

    def replaced(self) -> str:
        """Return the names of the tensors that it released, with their published bytes; empty if there are none."""
        return _named(self.released)


def _named(tensors: Sequence[WrittenTensor], most: int = 5) -> str:
    named = ", ".join(f"{tensor.name} ({size(tensor.private_bytes)})" for tensor in tensors[:most])
    left = len(tensors) - most
    return f"{named} and {left} more" if left > 0 else named


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """One published segment.

    Args:
        file: Its file name.
        name: The model's name.
        version: The model's version.
        model_nbytes: Bytes of weights of the model.
        stored_nbytes: Bytes that this file takes; the rest lies in base segments.
        tensors: Number of named tensors and arrays.
        by_value: Bytes of the skeleton: everything that is no tensor or array, which each loader has a copy of.
        readers: Processes that have it mapped.
        current: Whether it is the current version of its name.
        gone: Whether the file was removed, so that only its readers still have it.
    """

    file: str
    name: str
    version: int
    model_nbytes: int
    stored_nbytes: int
    tensors: int
    by_value: int
    readers: int
    current: bool
    gone: bool


@dataclass(frozen=True, slots=True)
class OnDevice:
    """A copy of a model's weights on a GPU, which processes share.

    Args:
        device: The GPU's UUID, as `nvidia-smi -L` lists it.
        model: Name and version of the model. If several have the same weights, the one that was loaded first.
        nbytes: The number of bytes.
        holders: The processes that have it loaded.
    """

    device: str
    model: str
    nbytes: int
    holders: tuple[int, ...]

    def __str__(self) -> str:
        """Return one line with the processes."""
        by = ", ".join(map(str, self.holders)) or "no process"
        return f"{self.model} on {self.device}: {size(self.nbytes)}, loaded by {by}"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Something in the segment directory that was not read.

    Args:
        file: Its name; empty for the directory itself. `devices/NAME` is a process that keeps weights on a GPU.
        reason: Why: it is damaged, another user's, no plain file, or did not answer.
    """

    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """What is shared on this machine: segments and the processes that map them.

    Args:
        directory: The segment directory.
        segments: The published segments, and removed ones that are still mapped.
        views: One entry per process and segment that it maps.
        unreadable: Files that are called like segments and cannot be read, and processes that keep weights on a GPU
            and do not answer.
        devices: The copies on GPUs of all models that this user's processes loaded with `share=True`, whichever
            directory their segments lie in.

    Example:
        >>> import zerocopy
        >>> print(zerocopy.Report("/tmp/models", (), ()))
        nothing is published in /tmp/models
    """

    directory: str
    segments: tuple[SegmentInfo, ...]
    views: tuple[View, ...]
    unreadable: tuple[Unreadable, ...] = ()
    devices: tuple[OnDevice, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain dicts and lists, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Return lines for a terminal: each model, the number of its readers, and what each process wrote."""
        if not self.segments and not self.views:
            return "\n".join([f"nothing is published in {self.directory}", *map(str, self.devices), *self.not_read()])
        lines = [f"published in {self.directory}:"]
        for info in sorted(self.segments, key=lambda entry: (entry.name, entry.version)):
            state = "removed, still read" if info.gone else "current" if info.current else ""
            title = f"{info.name} version {info.version}" + (f" ({state})" if state else "")
            stored = "" if info.stored_nbytes == info.model_nbytes else f", {size(info.stored_nbytes)} stored here"
            readers = "1 process" if info.readers == 1 else f"{info.readers or 'no'} processes"
            weights = f"{size(info.model_nbytes)} in {info.tensors} tensor{'s' * (info.tensors != 1)}"
            lines.append(f"{title}: {weights}{stored}, shared by {readers}")
            lines.extend(f"  {view}" for view in self.views if view.segment == info.file)
        listed = {info.file for info in self.segments}
        lines.extend(f"{view.segment} (removed): {view}" for view in self.views if view.segment not in listed)
        return "\n".join([*lines, *map(str, self.devices), *self.not_read()])

    def not_read(self) -> list[str]:
        """Return a line for each thing that could not be read."""
        return [f"not read: {entry.file or self.directory}: {entry.reason}" for entry in self.unreadable]


def report(*, directory: str | os.PathLike[str] | None = None, pids: Iterable[int] | None = None) -> Report:
    """Report what is shared and what is private, segment by segment and process by process.

    Args:
        directory: The segment directory; the default one if None.
        pids: Processes to inspect; every process that this user may inspect if None.

    Returns:
        The report. On systems without /proc it lists segments and no processes. Each process is looked at once: what it
        maps after that is in the next report.

    Example:
        >>> import torch, zerocopy
        >>> ref = zerocopy.publish(torch.nn.Linear(4, 2), name="doc-report")
        >>> [info.version for info in zerocopy.report().segments if info.name == "doc-report"]
        [1]
        >>> zerocopy.unpublish(ref)
    """
    folder = places.folder_of(directory)
    manifests, unread = _manifests(folder)
    views = []
    for pid in _pids() if pids is None else pids:
        mapped, elsewhere = _mappings(pid, folder)
        released = _released(pid, folder)
        if released and not mapped:
            elsewhere = _private(pid)
        for file in dict.fromkeys([*mapped, *released]):
            if file not in manifests:  # published since the folder was listed, or removed
                manifests[file] = _late_manifest(pid, folder / file)
            known = manifests[file]
            view = _view(pid, file, mapped.get(file, ()), elsewhere, known[0] if known else None)
            views.append(replace(view, released=released.get(file, ())))
    current = {places.current_target(folder, name) for name in places.names(folder)}
    infos = []
    for file, known in manifests.items():
        if known is None:
            continue
        manifest, by_value = known
        infos.append(
            SegmentInfo(
                file,
                manifest.name,
                manifest.version,
                manifest.model_nbytes,
                sum(block.nbytes for block in manifest.blocks if block.base is None),
                sum(len(block.names) for block in manifest.blocks),
                by_value,
                len({view.pid for view in views if view.segment == file and view.mapped}),
                file in current,
                not os.path.lexists(folder / file),
            )
        )
    copies, silent = on_devices()
    return Report(str(folder), tuple(infos), tuple(views), (*unread, *silent), copies)


def on_devices() -> tuple[tuple[OnDevice, ...], tuple[Unreadable, ...]]:
    """Return the copies on GPUs that this user's processes share, and the places of those that did not say what."""
    copies, silent = kept(places.default_directory())
    return (
        tuple(OnDevice(f"GPU-{UUID(hex=each.device)}", each.model, each.nbytes, each.holders) for each in copies),
        tuple(Unreadable(f"devices/{each.name}", each.reason) for each in silent),
    )


def _manifests(folder: Path) -> tuple[dict[str, tuple[Manifest, int] | None], list[Unreadable]]:
    """Return the manifests of a folder's segments by file, and what could not be read."""
    found: dict[str, tuple[Manifest, int] | None] = {}
    reason = places.why_distrusted(folder) if os.path.lexists(folder) else ""
    unread = [Unreadable("", reason)] if reason else []
    for path in places.segments(folder):
        try:
            found[path.name] = _manifest(path)
        except SegmentGoneError:
            continue
        except (ZerocopyError, OSError) as error:
            unread.append(Unreadable(path.name, str(error)))
            found[path.name] = None
    return found, unread


def _manifest(path: Path, *, follow: bool = False) -> tuple[Manifest, int]:
    """Return a segment's manifest and the size of its skeleton."""
    try:
        fd = opened(path, os.O_RDONLY, foreign=follow)  # without a lease: a report must not keep a segment alive
    except FileNotFoundError as error:
        raise SegmentGoneError(f"{path} is gone") from error
    try:
        head = check(fd, path)
        return head.manifest, len(head.skeleton)
    finally:
        close(fd)


def _late_manifest(pid: int, path: Path) -> tuple[Manifest, int] | None:
    """Read the manifest of a segment that is new, or that was removed and is still read."""
    with suppress(OSError, ZerocopyError):  # SegmentGoneError among them
        return _manifest(path)
    return _removed_manifest(pid, path)


def _removed_manifest(pid: int, path: Path) -> tuple[Manifest, int] | None:
    """Read the manifest of a removed segment through a reader's descriptor."""
    with suppress(OSError):  # the process has ended
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError, ZerocopyError):
                if os.readlink(entry) == f"{path} (deleted)":
                    return _manifest(entry, follow=True)
    return None


def _released(pid: int, folder: Path) -> dict[str, tuple[WrittenTensor, ...]]:
    """Return the tensors that a process's models released, by segment file, as the process noted them."""
    found: dict[str, tuple[WrittenTensor, ...]] = {}
    try:
        entries = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return {}
    for entry in entries:
        try:
            if not os.readlink(f"/proc/{pid}/fd/{entry}").startswith(f"/memfd:{NOTE}"):
                continue
            path, *lines = _text_of(Path(f"/proc/{pid}/fd/{entry}")).splitlines()
            noted = [line.split(" ", 1) for line in lines]
            tensors = tuple(WrittenTensor(name, int(nbytes)) for nbytes, name in noted)
        except (OSError, ValueError):  # it closed the file meanwhile, or has just made it
            continue
        if Path(path).parent == folder:
            found[Path(path).name] = found.get(Path(path).name, ()) + tensors
    return found


def _text_of(note: Path) -> str:
    fd = opened(note, os.O_RDONLY, foreign=True)
    try:
        return os.pread(fd, _LONGEST_NOTE, 0).decode(errors="surrogateescape")
    finally:
        close(fd)


def _private(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def _pids() -> Iterator[int]:
    """Yield the processes of the machine, those included that start while the caller looks at the others."""
    seen: set[int] = set()
    for _ in range(_LISTINGS if Path("/proc/self").is_dir() else 0):
        new = sorted({int(name) for name in os.listdir("/proc") if name.isdigit()} - seen)
        yield from new
        seen.update(new)


@dataclass(slots=True)
class _Part:
    """One line of smaps: the kernel splits a mapping where its flags differ."""

    start: int
    end: int
    offset: int
    fields: dict[str, int]


def _mappings(pid: int, folder: Path) -> tuple[dict[str, list[_Part]], int]:
    """Return the parts of a process's mappings of segments in a folder, by file name, and its other private bytes."""
    try:
        if f"{folder}/" not in Path(f"/proc/{pid}/maps").read_text():
            return {}, 0
        lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    except OSError:
        return {}, 0
    found: dict[str, list[_Part]] = {}
    elsewhere = 0
    part: _Part | None = None
    for line in lines:
        match = _LINE.match(line)
        if match:
            path = match[5].removesuffix(" (deleted)")
            part = None
            reads = match[3] != "rw-s"  # as its publisher's window is, see _window
            if reads and path.startswith(f"{folder}/") and path.endswith(places.SUFFIX):
                part = _Part(int(match[1], 16), int(match[2], 16), int(match[4], 16), {})
                found.setdefault(Path(path).name, []).append(part)
        elif part is not None and line.endswith(" kB"):
            key, value = line.split(":")
            part.fields[key] = int(value.split()[0]) * 1024
        elif line.startswith("Private_"):
            elsewhere += int(line.split()[1]) * 1024
    return found, elsewhere


def _view(pid: int, file: str, parts: Sequence[_Part], elsewhere: int, manifest: Manifest | None) -> View:
    total = {key: sum(part.fields.get(key, 0) for part in parts) for key in ("Size", "Rss", "Pss", "Anonymous")}
    names: dict[str, int] = {}
    for part in parts:
        own = private_pages(pid, part.start, part.end - part.start) if total["Anonymous"] else None
        if own is None or manifest is None:
            continue
        for block in manifest.blocks:
            if block.base is not None or not block.nbytes:
                continue
            first = max(0, (block.offset - part.offset) // PAGE)
            last = -(-(block.offset + block.nbytes - part.offset) // PAGE)
            pages = int(own[first : max(first, last)].sum())
            if pages:
                name = ", ".join(block.names) or f"bytes at {block.offset}"
                names[name] = names.get(name, 0) + min(pages * PAGE, block.nbytes)
    written = tuple(WrittenTensor(name, nbytes) for name, nbytes in names.items())
    return View(
        pid,
        _command(pid),
        file,
        mapped=total["Size"],
        resident=total["Rss"],
        proportional=total["Pss"],
        private=total["Anonymous"],
        private_elsewhere=elsewhere,
        written=written,
    )


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:60]
    except OSError:
        return ""
