"""Where segments lie, how their files are called, which versions a name has, and the removal of leftovers."""

from __future__ import annotations

import logging
import os
import re
import secrets
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import islice
from pathlib import Path

from zerocopy import _caretaker_process as links
from zerocopy._caretaker_process import CURRENT, LAST, distrust, me, read_link
from zerocopy._caretaker_process import SUFFIX as SUFFIX
from zerocopy._caretaker_process import parse as parse
from zerocopy._caretaker_process import remove_if_free as remove_if_free
from zerocopy._lease import exclusive, require_leases, typed_errors
from zerocopy._segment.checking import kept
from zerocopy.errors import UntrustedPathError, ZerocopyError

_log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# The files that zerocopy makes. A sweep touches no other file: the folder may be a user's own.
_OURS = re.compile(r"[A-Za-z0-9._-]+@\d+-[0-9a-f]+(-[0-9a-f]+)?\.zc(\.part|\.gate\.part)?")
SHARED_MEMORY = Path("/dev/shm")
# Files that the first publish and later ones look at for leftovers: their time does not grow with the folder.
_FIRST, _STEP = 256, 16


def default_directory() -> Path:
    """Return the segment directory of this program, which `ZEROCOPY_DIRECTORY` may name, or else of this user.

    The user's is in shared memory where the system has it, else in the temporary folder.
    """
    chosen = os.environ.get("ZEROCOPY_DIRECTORY")
    return Path(chosen).absolute() if chosen else memory_folder() / f"zerocopy-{me()}"


def memory_prefix() -> str:
    """Return the start of the paths of files in memory."""
    return f"{memory_folder()}{os.sep}"


def has_shared_memory() -> bool:
    """Return whether the system has shared memory that this process may write."""
    return SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK)


@cache
def memory_folder() -> Path:
    """Return the folder of this machine in which every user has a segment directory."""
    if has_shared_memory():
        return SHARED_MEMORY
    try:
        return Path(tempfile.gettempdir())
    except OSError:  # nothing can be written anywhere, and to publish there is a typed error
        return SHARED_MEMORY


def folder_of(directory: str | os.PathLike[str] | None) -> Path:
    """Return the segment directory that an argument names."""
    return default_directory() if directory is None else Path(directory).absolute()


def prepare(directory: str | os.PathLike[str] | None) -> Path:
    """Return the directory to publish in. If it does not exist, it is made, closed to other users.

    Raises:
        UntrustedPathError: It belongs to another user, or others can write it.
        UnusableDirectoryError: It cannot be made.
    """
    require_leases()
    path = folder_of(directory)
    with typed_errors(path):
        _make_private(path)
    require_trust(path)
    return path


def _make_private(path: Path) -> None:
    if os.path.lexists(path):
        return
    _make_private(path.parent)
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
        os.chmod(path, 0o700)  # whatever the umask


def why_distrusted(folder: Path) -> str:
    """Return why a folder is not to be believed, or an empty text: it is no folder, or others own or can write it."""
    try:
        link = os.lstat(folder)
        if stat.S_ISLNK(link.st_mode) and link.st_uid not in (me(), 0):
            return f"is a link of user {link.st_uid}"
        return distrust(os.stat(folder), folder=True)
    except OSError as error:
        return f"cannot be looked at ({error.strerror})"


def require_trust(folder: Path) -> None:
    """Refuse a folder in which other users can change files.

    Raises:
        UntrustedPathError: It is such a folder, or no folder.
    """
    reason = why_distrusted(folder)
    if reason:
        raise UntrustedPathError(
            f"{folder} {reason}; nothing of it was read: pass a folder inside it, which is made for this user alone, "
            f"or take the right to write away from others (chmod go-w)"
        )


def check_name(name: str) -> str:
    """Return a model name if it can be part of a file name.

    Raises:
        ValueError: It cannot.
    """
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise ValueError(f"{name!r} is not a model name: use up to 100 letters, digits, dots, dashes and underscores")
    return name


def name_of_class(kind: type) -> str:
    """Return the default name of a model: its class's, without the characters that model names must not have."""
    return re.sub(r"[^A-Za-z0-9._-]", "", kind.__name__).lstrip("._-")[:100] or "model"


def segment_path(directory: Path, name: str, version: int) -> Path:
    """Return a new path for a version (0 for a model without a name). Two publishers never get the same path."""
    return directory / f"{name}@{version}-{secrets.token_hex(4)}{SUFFIX}"


@contextmanager
def new_version(directory: Path, name: str, version: int | None) -> Iterator[int]:
    """Yield a version number of a name that no other publisher got or gets: a given one, or the next.

    The number stays taken if a file of that version, finished or not, exists when the block ends.

    Yields:
        The number.

    Raises:
        ValueError: The given number is not greater than every number that was given out, or no integer.
    """
    if version is not None and type(version) is not int:
        raise ValueError(f"version {version!r} of {name!r} is no integer: pass one, or None for the next")
    with typed_errors(directory), exclusive(directory):
        last = directory / f"{name}{LAST}"
        recorded = read_link(str(last))
        current = parse(current_target(directory, name) or "")
        newest = max(int(recorded) if recorded and recorded.isdecimal() else 0, current[1] if current else 0)
        if version is not None and version <= newest:
            other = "the current one" if current and current[1] == newest else "one that a publisher is writing"
            raise ValueError(f"version {version} of {name!r} is not newer than {other}, {newest}")
        number = newest + 1 if version is None else version
        links.write_link(str(last), str(number))
        yield number


def make_current(directory: Path, segment: Path) -> None:
    """Make a segment the current version of its name, in one step, unless a newer version exists."""
    name, number = parse(segment.name) or ("", 0)
    with typed_errors(directory), exclusive(directory):
        link = directory / f"{name}{CURRENT}"
        target = current_target(directory, name) or ""
        there = parse(target)
        if there is None or there[1] < number or not (directory / target).exists():
            links.write_link(str(link), segment.name)


def settle(segment: Path) -> None:
    """Correct the links of a segment's name after its file was removed or was never made."""
    links.settle(str(segment.parent), segment.name.rpartition("@")[0])


def current_target(directory: Path, name: str) -> str | None:
    """Return the file name of a name's current version, which may be gone, or None without one."""
    target = read_link(str(directory / f"{name}{CURRENT}"))
    parsed = parse(target) if target is not None else None
    return target if parsed is not None and parsed[0] == name else None  # else it was not made by this package


def candidates(directory: Path, name: str) -> Iterator[Path]:
    """Yield the files of a name's versions: the current one first, then the others from the newest on.

    Raises:
        UntrustedPathError: The directory belongs to another user, or others can write it.
    """
    if not os.path.lexists(directory):
        return
    require_trust(directory)
    target = current_target(directory, name)
    if target is not None:
        yield directory / target
    with typed_errors(directory):
        files = links.versions(str(directory), name)
    yield from (directory / file for file in files if file != target)


def names(directory: Path) -> list[str]:
    """Return the published names of a directory."""
    if not directory.is_dir():
        return []
    with typed_errors(directory):
        return sorted(file.removesuffix(CURRENT) for file in os.listdir(directory) if file.endswith(CURRENT))


def segments(directory: Path) -> list[Path]:
    """Return the segment files of a directory."""
    if not directory.is_dir():
        return []
    with typed_errors(directory):
        return sorted(directory / file for file in os.listdir(directory) if file.endswith(SUFFIX))


def sweep(directory: Path | None = None) -> list[Path]:
    """Remove what killed processes left: files without a lease, unfinished files, dangling links.

    Segments published with `keep=True` stay, and so does every file that zerocopy did not make, or that belongs to
    another user. `report` lists the files that cannot be read.

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
    with typed_errors(folder):
        files = sorted(os.listdir(folder))
    removed = [folder / file for file in files if _swept(folder, file)]
    for file in files:
        name = file.removesuffix(CURRENT).removesuffix(LAST)
        if name != file and read_link(str(folder / file)) is not None:
            links.settle(str(folder), name)
            if not (folder / file).is_symlink():
                removed.append(folder / file)
    return [path for path in removed if not path.name.endswith(LAST)]


def _swept(folder: Path, file: str) -> bool:
    """Remove a file of zerocopy's if no process needs it, and return whether it was removed."""
    path = folder / file
    try:
        if not _OURS.fullmatch(file) or kept(path):
            return False
    except (OSError, ZerocopyError):
        return False  # what cannot be read stays; `report` lists it
    return remove_if_free(str(path)) and not os.path.lexists(path)  # else it is not this user's


class Sweeper:
    """Removes leftovers a few files at a time, with every publish: no publish waits for a folder of many files."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: dict[Path, Iterator[str]] = {}

    def step(self, folder: Path) -> None:
        """Look at some files of a folder. What goes wrong is logged: it is no reason not to publish."""
        try:
            with self._lock:
                first = folder not in self._left
                most = _FIRST if first else _STEP
                files = iter(os.listdir(folder)) if first else self._left[folder]
                batch = list(islice(files, most))
                self._left[folder] = files if first or len(batch) == most else iter(os.listdir(folder))
            for file in batch:
                _swept(folder, file)
                name = file.removesuffix(CURRENT).removesuffix(LAST)
                if name != file:
                    links.settle(str(folder), name)
        except Exception:  # of any type: a file that nobody has thought of must not stop every publish
            _log.warning("cannot look for leftovers in %s", folder, exc_info=True)

    def after_fork_in_child(self) -> None:
        """Make a new lock, because one that another thread held at the fork stays locked in the child."""
        self._lock = threading.Lock()


sweeper = Sweeper()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=sweeper.after_fork_in_child)
