"""Remember which copies of segments were verified in full, so that one process of the machine does it once per copy.

A note is an empty file in the user's own segment directory. Its name is a hash of the copy's device, inode, size,
modification and change time, and of the digest it was verified against: any write to the copy makes another name.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from zerocopy._caretaker_process import distrust
from zerocopy._directory import default_directory, prepare, why_distrusted
from zerocopy._segment.format import Manifest
from zerocopy.errors import ZerocopyError

_MOST = 1000  # notes; the oldest go
_DAYS = 30  # a note that old goes too


def _folder() -> Path:
    return default_directory() / "verified"


def _note(fd: int, manifest: Manifest) -> str:
    status = os.fstat(fd)
    facts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, manifest.digest)
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def is_verified(fd: int, manifest: Manifest) -> bool:
    """Return whether an open file was verified against a manifest and not changed since."""
    folder = _folder()
    try:
        status = os.lstat(folder / _note(fd, manifest))
    except OSError:
        return False
    return not (distrust(status) or why_distrusted(folder) or why_distrusted(folder.parent))


def note_verified(fd: int, manifest: Manifest) -> None:
    """Note that an open file was verified against a manifest, if a note can be kept."""
    if time.time_ns() - os.fstat(fd).st_ctime_ns < 100_000_000:
        return  # a further write within the clock's granularity would not change the times
    try:
        prepare(None)
        folder = _folder()
        prepare(folder)
        (folder / _note(fd, manifest)).touch(mode=0o600)
        notes = sorted((entry.stat().st_mtime, entry.path) for entry in os.scandir(folder))
        oldest = time.time() - _DAYS * 86400
        for number, (when, path) in enumerate(notes):
            if when < oldest or number < len(notes) - _MOST:
                os.unlink(path)
    except (OSError, ZerocopyError):
        return  # the next load verifies it again
