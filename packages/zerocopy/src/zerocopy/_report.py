"""report: which models are published on this machine, which processes map them, and which bytes are private."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zerocopy import _directory as places
from zerocopy._segment.format import Manifest, check
from zerocopy._writes import PAGE, private_pages
from zerocopy.errors import CorruptSegmentError, SegmentGoneError

_LINE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) \S+ \d+\s+(.*)$")


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

    def __str__(self) -> str:
        """Return one line with the process's memory in the segment and the tensors that it wrote."""
        shares = f"{size(self.resident)} in memory, its share {size(self.proportional)}"
        return f"{self.pid} {self.command}".strip() + f": {shares}; wrote {self.wrote() or 'nothing'}"

    def wrote(self, most: int = 5) -> str:
        """Return the names of the tensors that it wrote, with the bytes of their pages; empty if there are none."""
        named = ", ".join(f"{tensor.name} ({size(tensor.private_bytes)})" for tensor in self.written[:most])
        left = len(self.written) - most
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
        tensors: Number of named tensors.
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
    readers: int
    current: bool
    gone: bool


@dataclass(frozen=True, slots=True)
class Report:
    """What is shared on this machine: segments and the processes that map them.

    Args:
        directory: The segment directory.
        segments: The published segments, and removed ones that are still mapped.
        views: One entry per process and segment that it maps.

    Example:
        >>> import zerocopy
        >>> print(zerocopy.Report("/tmp/models", (), ()))
        nothing is published in /tmp/models
    """

    directory: str
    segments: tuple[SegmentInfo, ...]
    views: tuple[View, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain dicts and lists, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Return lines for a terminal: each model, the number of its readers, and what each process wrote."""
        if not self.segments:
            return f"nothing is published in {self.directory}"
        lines = [f"published in {self.directory}:"]
        for info in sorted(self.segments, key=lambda entry: (entry.name, entry.version)):
            state = "removed, still read" if info.gone else "current" if info.current else ""
            title = f"{info.name} version {info.version}" + (f" ({state})" if state else "")
            stored = "" if info.stored_nbytes == info.model_nbytes else f", {size(info.stored_nbytes)} stored here"
            readers = "1 process" if info.readers == 1 else f"{info.readers or 'no'} processes"
            weights = f"{size(info.model_nbytes)} in {info.tensors} tensor{'s' * (info.tensors != 1)}"
            lines.append(f"{title}: {weights}{stored}, shared by {readers}")
            lines.extend(f"  {view}" for view in self.views if view.segment == info.file)
        return "\n".join(lines)


def report(*, directory: str | os.PathLike[str] | None = None, pids: Iterable[int] | None = None) -> Report:
    """Report what is shared and what is private, segment by segment and process by process.

    Args:
        directory: The segment directory; the default one if None.
        pids: Processes to inspect; every process that this user may inspect if None.

    Returns:
        The report. On systems without /proc it lists segments and no processes.

    Example:
        >>> import torch, zerocopy
        >>> ref = zerocopy.publish(torch.nn.Linear(4, 2), name="doc-report")
        >>> [info.version for info in zerocopy.report().segments if info.name == "doc-report"]
        [1]
        >>> zerocopy.unpublish(ref)
    """
    folder = places.default_directory() if directory is None else Path(directory).absolute()
    manifests: dict[str, Manifest | None] = {path.name: _manifest(path) for path in places.segments(folder)}
    on_disk = set(manifests)
    views = []
    for pid in _pids() if pids is None else pids:
        mapped, elsewhere = _mappings(pid, folder)
        for file, parts in mapped.items():
            if file not in manifests:
                manifests[file] = _removed_manifest(pid, folder / file)
            views.append(_view(pid, file, parts, elsewhere, manifests[file]))
    current = {os.readlink(link) for link in folder.glob("*@current")} if folder.is_dir() else set()
    infos = []
    for file, manifest in manifests.items():
        if manifest is None:
            continue
        infos.append(
            SegmentInfo(
                file,
                manifest.name,
                manifest.version,
                manifest.model_nbytes,
                sum(block.nbytes for block in manifest.blocks if block.base is None),
                sum(len(block.names) for block in manifest.blocks),
                len({view.pid for view in views if view.segment == file}),
                file in current,
                file not in on_disk,
            )
        )
    return Report(str(folder), tuple(infos), tuple(views))


def _manifest(path: Path) -> Manifest | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # without a lease: a report must not keep a segment alive
    except OSError:
        return None
    try:
        return check(fd, path).manifest
    except (CorruptSegmentError, SegmentGoneError):
        return None
    finally:
        os.close(fd)


def _removed_manifest(pid: int, path: Path) -> Manifest | None:
    """Read the manifest of a removed segment through a reader's descriptor."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.readlink(entry) == f"{path} (deleted)":
                return _manifest(entry)
        except OSError:
            continue
    return None


def _pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit()) if Path("/proc/self").is_dir() else []


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
            path = match[4].removesuffix(" (deleted)")
            part = None
            if path.startswith(f"{folder}/") and path.endswith(places.SUFFIX):
                part = _Part(int(match[1], 16), int(match[2], 16), int(match[3], 16), {})
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
