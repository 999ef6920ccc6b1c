"""The files of an environment: private copies, a table of what was installed, and what has changed since."""

from __future__ import annotations

import base64
import contextlib
import csv
import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from isolate.errors import EnvironmentBuildError

MARKER = ".isolate.json"
"""The file that makes an environment complete."""
_BYTECODE = "__pycache__"
_OF_INTERPRETER = re.compile(r"(pyvenv\.cfg|pybuilddir\.txt|python(3(\.\d+t?)?)?|.*\._pth)\Z", re.IGNORECASE)


class Row(NamedTuple):
    """One file of an environment.

    Attributes:
        path: Where it is, below the environment's folder.
        size: Its bytes.
        mtime: When it was written, in nanoseconds.
        digest: The SHA-256 of its content as in its wheel's record, or of the file where no record has it.
    """

    path: str
    size: int
    mtime: int
    digest: str


class Marker(msgspec.Struct, frozen=True):
    """What is written into an environment when it is complete."""

    packages: tuple[str, ...]
    inputs: str
    extension: str
    files: tuple[Row, ...]


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield all that is not a folder, by its path below this one, without Python's own caches of bytecode."""
    waiting = [""]
    while waiting:
        below = waiting.pop()
        # Another process may remove what was listed before it is looked at.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder / below) as entries:
            for entry in entries:
                name = below + entry.name
                if not entry.is_dir(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        yield name, entry.stat(follow_symlinks=False)
                elif entry.name != _BYTECODE:
                    waiting.append(name + "/")


def interpreter_files(folder: Path) -> dict[str, str]:
    """Return a digest for each file of an environment that its interpreter reads before it runs anything.

    `pyvenv.cfg` names the folder of the standard library. A package that replaces it has its own code run in place of
    that, in the worker that is not confined yet.
    """
    return {
        str(path.relative_to(folder)): _digest(path, status)
        for place in (folder, folder / "bin")
        for path in place.iterdir()
        if _OF_INTERPRETER.match(path.name) and not stat.S_ISDIR((status := path.lstat()).st_mode)
    }


def complete(folder: Path, inputs: str, extension: str, check: Callable[[], None]) -> bytes:
    """Replace every hard link below a folder by a copy, and return the marker that makes an environment of it.

    uv links installed files to its cache. A write into such a file would change it for every other environment, for
    later builds and for the user's own projects. On file systems with shared extents the kernel copies nothing.

    Args:
        folder: The environment.
        inputs: The hash of what decides its content.
        extension: The name of the one that it is built for.
        check: Called between files; ends the work by raising.
    """
    recorded = _recorded(folder)
    found = list(_walk(folder))
    linked = [(f"{folder}/{name}", status) for name, status in found if status.st_nlink > 1]
    # On one thread: most files are small, and handing the interpreter from thread to thread takes longer than they do.
    for path, status in linked:
        check()
        _own_file(path, status)
    rows = [
        Row(name, status.st_size, status.st_mtime_ns, recorded.get(name) or _digest(folder / name, status))
        for name, status in found
    ]
    return msgspec.json.encode(Marker(installed(folder), inputs, extension, tuple(rows)))


def _own_file(path: str, status: os.stat_result) -> None:
    """Put a copy with the same mode and times in the place of a file."""
    if not stat.S_ISREG(status.st_mode):
        return
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Not by a rename over the old file: ext4 would begin to write each of them to the disk at once.
        os.unlink(path)
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            left = status.st_size
            while left:
                left -= _copy_some(source, target, left)
            os.fchmod(target, stat.S_IMODE(status.st_mode) & ~0o022)
            os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(target)
    finally:
        os.close(source)


def _copy_some(source: int, target: int, count: int) -> int:
    try:
        done = os.copy_file_range(source, target, count)
    except OSError as failure:
        if failure.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        done = os.sendfile(target, source, None, count)
    if not done:
        raise EnvironmentBuildError("a file of the environment became shorter while it was copied")
    return done


def installed(environment: Path) -> tuple[str, ...]:
    """Return the packages of an environment as `name==version`."""
    names = []
    for info in (environment / "lib").glob("python*/site-packages/*.dist-info"):
        name, _, version = info.name.removesuffix(".dist-info").partition("-")
        names.append(f"{name.replace('_', '-').lower()}=={version}")
    return tuple(sorted(names))


def read_marker(data: bytes) -> Marker | None:
    """Return what a marker says; None if it is damaged."""
    try:
        return msgspec.json.decode(data, type=Marker)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _recorded(folder: Path) -> dict[str, str]:
    """Return the digests that the packages' own records have, by path below the environment's folder."""
    found = {}
    for record in (folder / "lib").glob("python*/site-packages/*.dist-info/RECORD"):
        site = record.parents[1].relative_to(folder)
        with contextlib.suppress(OSError, ValueError, csv.Error), open(record, encoding="utf-8", newline="") as file:
            for name, digest, *_ in csv.reader(file):
                if digest.startswith("sha256="):
                    found[os.path.normpath(site / name)] = digest.removeprefix("sha256=")
    return found


def _digest(path: Path, status: os.stat_result) -> str:
    """Return the digest of a file's content, or of a link's target."""
    if stat.S_ISLNK(status.st_mode):
        return _text(hashlib.sha256(os.fsencode(os.readlink(path))).digest())
    with open(path, "rb") as file:
        return _text(hashlib.file_digest(file, "sha256").digest())


def _has_digest(path: Path, status: os.stat_result, digest: str) -> bool:
    try:
        return _digest(path, status) == digest
    except FileNotFoundError:  # removed since it was listed
        return False


def _text(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _broken(folder: Path) -> str:
    if not (folder / "bin" / "python").exists():
        return "its interpreter is missing"
    with contextlib.suppress(FileNotFoundError):  # removed while it is listed
        if any((folder / "lib").glob("python*/site-packages/")):
            return ""
    return "its site-packages is missing"


def first_change(folder: Path, marker: Marker) -> str:
    """Return what differs from the table in size or time, or is missing; empty if nothing does."""
    if broken := _broken(folder):
        return broken
    base = f"{folder}/"
    for path, size, mtime, _ in marker.files:
        try:
            status = os.lstat(base + path)
        except OSError:
            return f"{path} is missing"
        if status.st_size != size or status.st_mtime_ns != mtime:
            return f"{path} was changed"
    return ""


def changes(folder: Path, marker: Marker) -> list[str]:
    """Return all that differs from the table, contents and owners included; reads every file."""
    found = [broken] if (broken := _broken(folder)) else []
    known = {row.path: row for row in marker.files}
    for name, status in _walk(folder):
        row = known.pop(name, None)
        if row is None:
            if name != MARKER:
                found.append(f"{name} was added")
        elif not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
            found.append(f"{name} is not a regular file")
        elif status.st_size != row.size or not _has_digest(folder / name, status, row.digest):
            found.append(f"{name} was changed")
        if status.st_uid not in (0, os.geteuid()):
            found.append(f"{name} belongs to another user")
    return sorted(found + [f"{name} is missing" for name in known])
