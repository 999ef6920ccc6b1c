"""Write files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["whole_file"]


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it there at the end, or remove it after an exception.

    Raises:
        OSError: There is no such folder, or it cannot be written to.
    """
    path = Path(path)
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
