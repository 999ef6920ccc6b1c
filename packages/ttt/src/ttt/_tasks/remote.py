"""Reads task files from where fsspec reaches: object stores, archives, web servers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ttt._tasks.loader import MAX_BYTES
from ttt.errors import MissingExtraError, UnknownSourceError, UnreadableFileError

Read = Callable[[], bytes]


def remote_files(uri: str) -> dict[str, Read]:
    """Return what reads each JSON file at a URI, by the file's name: one file with its neighbours, or a whole folder.

    Raises:
        MissingExtraError: Fsspec, or the package for this kind of URI, is not installed.
        UnknownSourceError: Nothing is there.
        UnreadableFileError: The place cannot be reached.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise MissingExtraError(f'{uri!r} needs fsspec: pip install "pentad-ttt[remote]"') from error
    try:
        files, root = url_to_fs(uri)
        if files.isfile(root):
            return {str(root): partial(_read, files, str(root), uri)}
        names = [str(n) for n in sorted(files.find(root)) if str(n).endswith(".json")] if files.isdir(root) else []
    except ImportError as error:
        raise MissingExtraError(f"{uri!r}: {error}; install that package beside fsspec") from error
    except Exception as error:  # each of fsspec's file systems raises errors of its own
        raise UnreadableFileError(f"{uri}: cannot be reached: {error}") from error
    if not names:
        raise UnknownSourceError(f"{uri!r}: no such file, and no folder with .json files")
    return {name: partial(_read, files, name, uri) for name in names}


def sibling(files: dict[str, Read], name: str, uri: str) -> Read | None:
    """Return what reads a neighbour of a file, here the solutions of challenges; None where there is none."""
    found = files.get(name)
    if found is not None or len(files) != 1:
        return found
    try:
        folder, _, file = uri.rpartition("/")
        return next(iter(remote_files(f"{folder}/{file.replace('challenges', 'solutions')}").values()))
    except UnknownSourceError:
        return None


def _read(files: Any, name: str, uri: str) -> bytes:
    try:
        with files.open(name, "rb") as file:
            data = bytes(file.read(MAX_BYTES + 1))
    except Exception as error:  # as above
        raise UnreadableFileError(f"{uri}: {name}: cannot be read: {error}") from error
    if len(data) > MAX_BYTES:
        raise UnreadableFileError(f"{uri}: {name}: has more than {MAX_BYTES} bytes")
    return data
