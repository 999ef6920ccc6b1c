"""Chooses where a run keeps its records and its submission, so that nothing found earlier is lost."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ttt._files import FULL, open_folder, read_own
from ttt._tasks.loader import MAX_BYTES

ABOUT = "run.json"


def claim_folder(wanted: Path, about: Mapping[str, Any], *, fresh: bool = False) -> tuple[Path, bool]:
    """Return a folder for a run, and whether the run goes on there.

    A run goes on in the folder of an earlier run if it has all of that run's tasks, under the same ids, with the same
    backend, budget and seed. Otherwise it gets the first of `NAME`, `NAME-2`, `NAME-3`, ... that no other run has.

    Args:
        wanted: The folder to use if it is free, or holds this very run.
        about: Describes the run; its `keys` are the record keys of its tasks by id.
        fresh: Whether to use a new folder in any case.
    """
    for folder in _numbered(wanted):
        open_folder(folder)
        if _create(folder / ABOUT, about):
            return folder, False
        if not fresh and _keys(folder / ABOUT) <= set(about["keys"].items()):
            return folder, True
    raise AssertionError("unreachable: the names do not end")


def keep_aside(path: Path) -> Path | None:
    """Rename a file to the first free `NAME.before-1.EXT`, `NAME.before-2.EXT`, ...; None if there is no such file."""
    for n in itertools.count(1):
        aside = path.with_name(f"{path.stem}.before-{n}{path.suffix}")
        if not path.exists():
            break
        if not aside.exists():
            os.rename(path, aside)
            return aside
    return None


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    for n in itertools.count(2):
        yield path.with_name(f"{path.stem}-{n}{path.suffix}")


def _create(path: Path, about: Mapping[str, Any]) -> bool:
    """Write a file whole if there is none; return whether this call wrote it."""
    data = json.dumps(about, indent=1).encode()
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".tmp-") as temporary:
            temporary.write(data)
            temporary.flush()
            os.fsync(temporary.fileno())
            os.link(temporary.name, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in FULL:
            if os.path.lexists(path):
                return False
            raise
        # A file system without links: another process may then see a part of the file, and look elsewhere.
        with contextlib.suppress(FileExistsError), path.open("xb") as file:
            file.write(data)
            return True
        return False
    return True


def _keys(path: Path) -> set[tuple[str, str]]:
    """Return ids and record keys of the run that a file describes; a key that no run has where it cannot be read."""
    try:
        return set(json.loads(read_own(path, MAX_BYTES))["keys"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {("", "")}
