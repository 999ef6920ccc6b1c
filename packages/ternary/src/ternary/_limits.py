"""The processors and the memory that this process may use, by the machine, its control groups and its own limit."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ternary.errors import ModelTooLargeError

__all__ = ["Limit", "check_memory", "memory_limit", "processors", "taking_memory"]

_GROUPS, _MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60


class Limit(NamedTuple):
    """A limit in bytes, and where it is set."""

    nbytes: int
    source: str


def processors(groups: Path = _GROUPS, mount: Path = _MOUNT) -> int:
    """Return how many processors this process may use, at least 1: those it may run on, within its groups' quota.

    Args:
        groups: The file that names this process's control groups.
        mount: Where control groups are mounted.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _folders("cpu", groups, mount) if (quota := _quota(folder)) is not None]
    # A part of a processor is left out: a step waits for its slowest thread, and that one would be stopped in turns.
    return max(1, min([allowed, *(int(quota) for quota in quotas)]))


def memory_limit(groups: Path = _GROUPS, mount: Path = _MOUNT) -> Limit | None:
    """Return the smallest of the memory limits that hold for this process, or None where the system reports none.

    Args:
        groups: The file that names this process's control groups.
        mount: Where control groups are mounted.
    """
    found = [*_physical(), *_own()]
    for folder in _folders("memory", groups, mount):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _text(folder / name)
            if text.isdigit() and int(text) < _UNLIMITED:
                found.append(Limit(int(text), str(folder / name)))
    return min(found, default=None)


def check_memory(nbytes: int, what: str, otherwise: str = "") -> None:
    """Refuse what takes more memory than this process may use.

    Args:
        nbytes: How much it takes.
        what: What takes it, for the message.
        otherwise: What else to do than to raise the limit.

    Raises:
        ModelTooLargeError: It takes more than the limit.
    """
    limit = memory_limit()
    if limit is not None and nbytes > limit.nbytes:
        raise ModelTooLargeError(
            f"{what}: {nbytes:,} bytes, but this process may use {limit.nbytes:,} ({limit.source}); raise the "
            f"limit{otherwise}"
        )


@contextmanager
def taking_memory(what: str, otherwise: str = "") -> Iterator[None]:
    """Say what could not get memory, where the system refuses it although no limit is below its size.

    Args:
        what: What takes it, for the message.
        otherwise: What else to do than to raise the limit.

    Raises:
        ModelTooLargeError: The system has refused it.
    """
    try:
        yield
    except (MemoryError, OSError) as e:
        if isinstance(e, OSError) and e.errno != errno.ENOMEM:
            raise
        raise ModelTooLargeError(f"{what}: this process gets no more memory; raise its limit{otherwise}") from None


def _folders(controller: str, groups: Path, mount: Path) -> Iterator[Path]:
    """Return the folders of a controller's groups that hold for this process, with those above them."""
    if sys.platform != "linux":
        return
    for line in _text(groups).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            root = mount
        elif controller in controllers.split(","):
            root = mount / controller
        else:
            continue
        folder = root / path.lstrip("/")
        # In a container the path may name a folder outside of what is mounted; then the root is the container's own.
        for place in (*([folder, *folder.parents] if folder.is_relative_to(root) else []), root):
            yield place
            if place == root:
                break


def _quota(folder: Path) -> float | None:
    """Return how many processors a group may keep busy, or None without a limit."""
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    if not quota:
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return int(quota) / int(period)


def _physical() -> list[Limit]:
    if not hasattr(os, "sysconf"):
        return []
    return [Limit(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "the machine's memory")]


def _own() -> list[Limit]:
    try:
        import resource
    except ImportError:
        return []
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return [Limit(soft, "RLIMIT_AS")] if 0 <= soft < _UNLIMITED else []


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
