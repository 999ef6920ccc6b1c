"""Write files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["is_stream", "whole_file"]


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it there at the end, or remove it after an exception.

    A device, a pipe or a descriptor's name such as /dev/stdout is written to, never replaced by a file.

    Raises:
        OSError: There is no such folder, it cannot be written to, or the path is a folder itself.
    """
    path = Path(path)
    if is_stream(path):
        with tempfile.TemporaryDirectory() as folder:
            beside = Path(folder, f"whole{path.suffix}")
            yield beside
            with beside.open("rb") as source, os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND), "wb") as target:
                shutil.copyfileobj(source, target)
        return
    if path.is_dir() or not path.name:
        raise IsADirectoryError(errno.EISDIR, "is a folder, wanted the name of a file", str(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{path.suffix}")
    # Not mkstemp, whose files only their owner can read: keep the mode of the earlier file, or follow the umask.
    try:
        temporary.touch(exist_ok=False)
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(path)) from None  # name the requested file, not the temporary one
    try:
        mode = (path if path.exists() else temporary).stat().st_mode
        yield temporary
        os.chmod(temporary, mode)  # safetensors puts a file that only its owner can read in the place of ours
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_stream(path: Path) -> bool:
    """Whether a path is a device, a pipe, a socket, or the name of a descriptor."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    named = path.parent in (Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd"))  # it may be a file's descriptor
    return named or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
