"""Where segments lie, how their files are called, and the link from a name to its current version."""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from pathlib import Path

from zerocopy._lease import TEMPORARY, exclusive, remove_if_free, require_leases
from zerocopy._segment.checking import kept
from zerocopy.errors import UnknownNameError, ZerocopyError

SUFFIX = ".zc"
_POINTER = "@current"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def default_directory() -> Path:
    """Return this user's segment directory: shared memory where the system has it, else the temporary folder."""
    shared = Path("/dev/shm")
    parent = shared if shared.is_dir() and os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
    return parent / f"zerocopy-{_user()}"


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def prepare(directory: str | os.PathLike[str] | None) -> Path:
    """Return the directory to publish in and make it if it does not exist. The default one is closed to other users."""
    require_leases()
    if directory is not None:
        path = Path(directory).absolute()
        path.mkdir(parents=True, exist_ok=True)
        return path
    path = default_directory()
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
    """Return a new path for a version. Two publishers never get the same path."""
    return directory / f"{name}@{version}-{secrets.token_hex(4)}{SUFFIX}"


def pointer(directory: Path, name: str) -> Path:
    """Return the path of the link to the current version of a name."""
    return directory / f"{name}{_POINTER}"


def point(directory: Path, name: str, segment: Path) -> None:
    """Make a segment the current version of a name, in one step: a reader sees the old version or the new one."""
    temporary = directory / f".{name}-{secrets.token_hex(4)}{TEMPORARY}"
    with exclusive(directory):
        temporary.symlink_to(segment.name)
        temporary.replace(pointer(directory, name))


def drop_pointer(directory: Path, name: str, segment: Path) -> None:
    """Remove a name's link if it still points to this segment."""
    with exclusive(directory):
        link = pointer(directory, name)
        if link.is_symlink() and os.readlink(link) == segment.name:
            link.unlink()


def current_path(directory: Path, name: str) -> Path:
    """Return the current segment of a name.

    Raises:
        UnknownNameError: Nothing is published under the name.
    """
    try:
        return directory / os.readlink(pointer(directory, name))
    except FileNotFoundError as error:
        known = sorted(link.name.removesuffix(_POINTER) for link in directory.glob(f"*{_POINTER}"))
        raise UnknownNameError(
            f"nothing is published as {name!r} in {directory}; there is {known or 'nothing'}"
        ) from error


def segments(directory: Path) -> list[Path]:
    """Return the segment files of a directory."""
    return sorted(directory.glob(f"*{SUFFIX}")) if directory.is_dir() else []


def sweep(directory: Path | None = None) -> list[Path]:
    """Remove what killed processes left: files without a lease, unfinished files, dangling links.

    Segments published with `keep=True` stay.

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
    folder = directory or default_directory()
    files = [*segments(folder), *(folder.glob(f"*{TEMPORARY}") if folder.is_dir() else ())]
    removed = [path for path in files if not path.is_symlink() and not kept(path) and remove_if_free(path)]
    if folder.is_dir():
        with exclusive(folder):
            dangling = [link for link in folder.glob(f"*{_POINTER}") if not link.exists()]
            for link in dangling:
                link.unlink(missing_ok=True)
        removed.extend(dangling)
    return removed
