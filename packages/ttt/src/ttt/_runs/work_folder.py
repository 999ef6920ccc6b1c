"""The files of a task's work folder as one value, to send them to another machine and back."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from ttt._files import PRIVATE, read_regular
from ttt.errors import ForeignCheckpointError

MAX_FILE = 8 << 30


def pack(folder: Path) -> dict[str, bytes]:
    """Return the content of every regular file below a folder, by relative path; unfinished versions are left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts) or path.is_dir():
            continue
        with contextlib.suppress(OSError):  # pruned meanwhile
            found[relative.as_posix()] = read_regular(path, MAX_FILE, follow=False)
    return found


def unpack(files: Mapping[str, bytes], folder: Path) -> None:
    """Replace a folder by one that holds these files.

    Raises:
        ForeignCheckpointError: A path leads out of the folder.
        OSError: They cannot be written; the folder is as before.
    """
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".tmp-"))
    try:
        for name, content in files.items():
            relative = PurePosixPath(name)
            if relative.is_absolute() or ".." in relative.parts or not relative.parts:
                raise ForeignCheckpointError(f"{name!r}: leads out of the work folder")
            path = new / relative
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE), "wb") as file:
                file.write(content)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(new, folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
