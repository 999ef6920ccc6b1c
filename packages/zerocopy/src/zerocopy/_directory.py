"""Where segments lie, how their files are called, which versions a name has, and the removal of leftovers."""

from __future__ import annotations

import os
import re
import secrets
import tempfile
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from zerocopy import _caretaker_process as links
from zerocopy._caretaker_process import CURRENT, LAST, read_link
from zerocopy._caretaker_process import SUFFIX as SUFFIX
from zerocopy._caretaker_process import parse as parse
from zerocopy._caretaker_process import remove_if_free as remove_if_free
from zerocopy._lease import exclusive, require_leases
from zerocopy._segment.checking import kept
from zerocopy.errors import ZerocopyError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# The files that zerocopy makes. A sweep touches no other file: the folder may be a user's own.
_OURS = re.compile(r"[A-Za-z0-9._-]+@\d+-[0-9a-f]+(-[0-9a-f]+)?\.zc(\.part|\.gate\.part)?")
_STEP = 16  # files that a publish looks at for leftovers, so that its time does not grow with the folder


def default_directory() -> Path:
    """Return this user's segment directory: shared memory where the system has it, else the temporary folder."""
    shared = Path("/dev/shm")
    parent = shared if shared.is_dir() and os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
    return parent / f"zerocopy-{_user()}"


def folder_of(directory: str | os.PathLike[str] | None) -> Path:
    """Return the segment directory that an argument names."""
    return default_directory() if directory is None else Path(directory).absolute()


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def prepare(directory: str | os.PathLike[str] | None) -> Path:
    """Return the directory to publish in and make it if it does not exist. The default one is closed to other users."""
    require_leases()
    path = folder_of(directory)
    if directory is not None:
        path.mkdir(parents=True, exist_ok=True)
        return path
    path.mkdir(mode=0o700, exist_ok=True)
    if path.stat().st_uid != _user():
        raise ZerocopyError(f"{path} belongs to another user; pass directory= to publish elsewhere")
    return path


def check_name(name: str) -> str:
    """Return a model name if it can be part of a file name.

    Raises:
        ValueError: It cannot.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a model name: use up to 100 letters, digits, dots, dashes and underscores")
    return name


def name_of_class(kind: type) -> str:
    """Return the default name of a model: its class's, without the characters that model names must not have."""
    return re.sub(r"[^A-Za-z0-9._-]", "", kind.__name__).lstrip("._-")[:100] or "model"


def segment_path(directory: Path, name: str, version: int) -> Path:
    """Return a new path for a version (0 for a model without a name). Two publishers never get the same path."""
    return directory / f"{name}@{version}-{secrets.token_hex(4)}{SUFFIX}"


def give_out_version(directory: Path, name: str, version: int | None) -> int:
    """Return a version number of a name that no other publisher got or gets: a given one, or the next.

    Raises:
        ValueError: The given number is not greater than every number that was given out.
    """
    with exclusive(directory):
        last = directory / f"{name}{LAST}"
        recorded = read_link(str(last))
        current = parse(read_link(str(directory / f"{name}{CURRENT}")) or "")
        newest = max(int(recorded) if recorded and recorded.isdecimal() else 0, current[1] if current else 0)
        if version is not None and version <= newest:
            other = "the current one" if current and current[1] == newest else "one that a publisher is writing"
            raise ValueError(f"version {version} of {name!r} is not newer than {other}, {newest}")
        number = newest + 1 if version is None else version
        links.write_link(str(last), str(number))
    return number


def make_current(directory: Path, segment: Path) -> None:
    """Make a segment the current version of its name, in one step, unless a newer version exists."""
    name, number = parse(segment.name) or ("", 0)
    with exclusive(directory):
        link = directory / f"{name}{CURRENT}"
        target = read_link(str(link)) or ""
        there = parse(target)
        if there is None or there[1] < number or not (directory / target).exists():
            links.write_link(str(link), segment.name)


def settle(segment: Path) -> None:
    """Correct the links of a segment's name after its file was removed or was never made."""
    links.settle(str(segment.parent), segment.name.rpartition("@")[0])


def current_target(directory: Path, name: str) -> str | None:
    """Return the file name of a name's current version, which may be gone, or None without one."""
    return read_link(str(directory / f"{name}{CURRENT}"))


def candidates(directory: Path, name: str) -> Iterator[Path]:
    """Yield the files of a name's versions: the current one first, then the others from the newest on."""
    target = current_target(directory, name)
    if target is not None:
        yield directory / target
    if directory.is_dir():
        yield from (directory / file for file in links.versions(str(directory), name) if file != target)


def names(directory: Path) -> list[str]:
    """Return the published names of a directory."""
    return sorted(link.name.removesuffix(CURRENT) for link in directory.glob(f"*{CURRENT}"))


def segments(directory: Path) -> list[Path]:
    """Return the segment files of a directory."""
    return sorted(directory.glob(f"*{SUFFIX}")) if directory.is_dir() else []


def sweep(directory: Path | None = None) -> list[Path]:
    """Remove what killed processes left: files without a lease, unfinished files, dangling links.

    Segments published with `keep=True` stay, and so does every file that zerocopy did not make.

    Args:
        directory: Where to look; the default directory if None.

    Returns:
        The paths that were removed.

    Example:
        >>> import tempfile, pathlib, zerocopy
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     zerocopy.sweep(pathlib.Path(folder))
        []
    """
    folder = folder_of(directory)
    if not folder.is_dir():
        return []
    files = sorted(os.listdir(folder))
    removed = [folder / file for file in files if _swept(folder, file)]
    for file in files:
        name = file.removesuffix(CURRENT).removesuffix(LAST)
        if name != file and (folder / file).is_symlink():
            links.settle(str(folder), name)
            if not (folder / file).is_symlink():
                removed.append(folder / file)
    return [path for path in removed if not path.name.endswith(LAST)]


def _swept(folder: Path, file: str) -> bool:
    """Remove a file of zerocopy's if no process needs it, and return whether it was removed."""
    path = folder / file
    if not _OURS.fullmatch(file) or path.is_symlink():
        return False
    return not kept(path) and remove_if_free(str(path))


class Sweeper:
    """Removes leftovers a few files at a time: all of a folder when it is first published to, then some per publish."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: dict[Path, Iterator[str]] = {}

    def step(self, folder: Path) -> None:
        """Look at some files of a folder."""
        with self._lock:
            if folder not in self._left:
                self._left[folder] = iter(())
                sweep(folder)
                return
            batch = list(islice(self._left[folder], _STEP))
            if len(batch) < _STEP:
                self._left[folder] = iter(os.listdir(folder))
        for file in batch:
            _swept(folder, file)

    def after_fork_in_child(self) -> None:
        """Make a new lock, because one that another thread held at the fork stays locked in the child."""
        self._lock = threading.Lock()


sweeper = Sweeper()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=sweeper.after_fork_in_child)
