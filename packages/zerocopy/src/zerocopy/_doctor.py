"""Check what this machine and installation mean for sharing weights: shared memory, limits, page settings, extras."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import mmap
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zerocopy._directory import SHARED_MEMORY, default_directory, has_shared_memory, memory_folder, segments
from zerocopy._lease import TEMPORARY
from zerocopy._report import on_devices, size
from zerocopy._segment.mapping import MADV_POPULATE_READ

_EXTRAS = {"ray": "ray", "safetensors": "safetensors", "rich": "cli"}
_SMALL = 1 << 30  # bytes; a smaller segment directory is reported


@dataclass(frozen=True, slots=True)
class Finding:
    """One checked fact.

    Args:
        subject: What was checked.
        ok: Whether it needs no attention.
        fact: What was found.
        advice: What to do, if it needs attention.
    """

    subject: str
    ok: bool
    fact: str
    advice: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as a plain dict, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Return it as one line."""
        return f"{'ok  ' if self.ok else 'LOOK'} {self.subject}: {self.fact}" + (f"; {self.advice}" * bool(self.advice))


def examine(directory: Path | None = None) -> list[Finding]:
    """Return the findings about this machine, for one segment directory."""
    folder = directory or default_directory()
    return [
        *_versions(),
        *(_shared_memory() if folder.parent == memory_folder() else ()),
        *_segment_directory(folder),
        *_memory_limit(folder),
        *_pages(),
        *_files(folder),
        *_devices(),
        *_extras(),
    ]


def _versions() -> Iterator[Finding]:
    parts = [f"{name} {_version(name)}" for name in ("pentad-zerocopy", "torch", "numpy")]
    yield Finding("versions", True, ", ".join([*parts, f"Python {platform.python_version()}"]))
    linux = sys.platform == "linux"
    system = f"{platform.system()} {platform.release()}"
    yield Finding("system", linux, system, "" if linux else "reports need /proc, and segments lie in temporary files")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # imported from its sources
        return "from sources"


def _shared_memory() -> Iterator[Finding]:
    """Yield whether segments without a directory of their own lie in shared memory, where the system should have it."""
    if sys.platform == "linux" and not has_shared_memory():
        state = "cannot be written" if SHARED_MEMORY.is_dir() else "is no folder"
        folder = memory_folder()
        there = "there is no temporary folder either" if folder == SHARED_MEMORY else f"segments lie in {folder}"
        advice = f"{there}: mount a tmpfs that this user can write, or publish with directory="
        yield Finding("shared memory", False, f"{SHARED_MEMORY} {state}", advice)


def _segment_directory(folder: Path) -> Iterator[Finding]:
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    usage = shutil.disk_usage(place)
    kind, point = _file_system(place)
    fact = f"{folder} on {point} ({kind}), {size(usage.free)} free of {size(usage.total)}"
    roomy = usage.free >= _SMALL
    advice = "raise it (docker: --shm-size, Kubernetes: a Memory volume) or publish with directory="
    yield Finding("segment directory", roomy, fact, "" if roomy else advice)
    writable = os.access(place, os.W_OK)
    yield Finding("writable", writable, f"{place}", "" if writable else "publish with directory= elsewhere")


def _file_system(path: Path) -> tuple[str, str]:
    """Return type and mount point of the file system that a path lies on."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return "unknown", "an unknown mount"
    holding = [(fields[1], fields[2]) for fields in mounts if path.resolve().is_relative_to(fields[1])]
    point, kind = max(holding, key=lambda pair: len(pair[0]), default=("an unknown mount", "unknown"))
    return kind, point


def _memory_limit(folder: Path) -> Iterator[Finding]:
    limit = memory_limit()
    if limit is None:
        yield Finding("memory limit", True, "no cgroup limit")
        return
    counted = _file_system(next(p for p in (folder, *folder.parents) if p.exists()))[0] in ("tmpfs", "ramfs")
    fact = f"{size(limit)} for this cgroup" + (", published segments included" if counted else "")
    yield Finding("memory limit", True, fact)


def memory_limit() -> int | None:
    """Return the smallest memory limit of the cgroups that this process is in, or None without one."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        root = Path("/sys/fs/cgroup") if not controllers else Path("/sys/fs/cgroup/memory")
        file = "memory.max" if not controllers else "memory.limit_in_bytes"
        group = root / path.lstrip("/")
        for level in (group, *group.parents):
            if not level.is_relative_to(root):
                break
            try:
                text = (level / file).read_text().strip()
            except OSError:
                continue
            if text.isdigit() and int(text) < 1 << 60:  # cgroup 1 has a huge number for no limit
                found.append(int(text))
    return min(found, default=None)


def _pages() -> Iterator[Finding]:
    readable = os.access("/proc/self/pagemap", os.R_OK)
    yield Finding(
        "page map", readable, "readable" if readable else "not readable",
        "" if readable else "`written` compares every byte instead",
    )  # fmt: skip
    populates = _can_populate()
    yield Finding(
        "read ahead", populates, "MADV_POPULATE_READ works" if populates else "no MADV_POPULATE_READ",
        "" if populates else "first calls take page faults; it needs Linux 5.14",
    )  # fmt: skip
    try:
        huge = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled").read_text().strip()
    except OSError:
        huge = "not available"
    yield Finding("huge pages of shared memory", True, huge)


def _can_populate() -> bool:
    if sys.platform != "linux":
        return False
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        here = ctypes.c_char.from_buffer(page)
        address = ctypes.addressof(here)
        done = ctypes.CDLL(None).madvise(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), MADV_POPULATE_READ)
        del here
    return bool(done == 0)


def _files(folder: Path) -> Iterator[Finding]:
    published = segments(folder)
    taken = sum(path.stat().st_blocks * 512 for path in published if path.exists())
    unfinished = len(list(folder.glob(f"*{TEMPORARY}"))) if folder.is_dir() else 0
    yield Finding("published", True, f"{len(published)} segments, {size(taken)}, {unfinished} unfinished files")


def _devices() -> Iterator[Finding]:
    copies, silent = on_devices()
    processes = {pid for copy in copies for pid in copy.holders}
    fact = f"{len(copies)} copies of weights, {size(sum(copy.nbytes for copy in copies))}, {len(processes)} processes"
    advice = "; ".join(f"{entry.file}: {entry.reason}" for entry in silent)
    yield Finding("shared on GPUs", not silent, fact, advice)


def _extras() -> Iterator[Finding]:
    present = [name for name in _EXTRAS if importlib.util.find_spec(name)]
    absent = [
        f'{name} (pip install "pentad-zerocopy[{extra}]")' for name, extra in _EXTRAS.items() if name not in present
    ]
    yield Finding(
        "optional libraries", True, ", ".join(present) or "none", f"not installed: {', '.join(absent)}" * bool(absent)
    )
