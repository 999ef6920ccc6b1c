"""Named segments, for systems without nameless memory or with a closed /proc.

Every file of a process starts with `xfer-UID-PID-`. Its `.alive` file is locked for as long as the process lives, so
any process can find a dead owner's files and remove them; each new owner does that first. Other users can make such
names too: what is not this user's own file is neither opened for long nor believed nor removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sys
from collections.abc import Iterator

from xfer._shared.files import check_folder, create_own, is_own, open_own, typed_errors, user
from xfer._shared.lease import fcntl
from xfer.errors import ProducerGoneError, UntrustedFileError

DIRECTORY = "/dev/shm" if sys.platform == "linux" else "/tmp"
TOPIC = "xfer-topic-"
_PATTERN = re.compile(r"xfer-(\d+)-(\d+)-([0-9a-f]+)\.(alive|seg)")


def room() -> int:
    """Return how many bytes of shared memory the system has left, or 0 where it does not report them."""
    try:
        space = os.statvfs(DIRECTORY)
    except OSError:
        return 0
    return space.f_bavail * space.f_frsize


class Owner:
    """A process that owns named segments; it holds a lock for as long as it lives.

    Raises:
        UntrustedFileError: Other users can replace files in the folder.
        TooManyOpenFilesError: No descriptor is left.
        UnsupportedPlatformError: The folder is not there, or not to be written to.
    """

    def __init__(self) -> None:
        with typed_errors(f"a file in {DIRECTORY}"):
            check_folder(DIRECTORY)
            with contextlib.suppress(OSError):  # leftovers of others are not this pool's concern
                reap()
            self.name = f"xfer-{user()}-{os.getpid()}-"
            while True:
                self.path = f"{DIRECTORY}/{self.name}{secrets.token_hex(8)}.alive"
                self.fd = create_own(self.path)
                fcntl.flock(self.fd, fcntl.LOCK_EX)
                if os.fstat(self.fd).st_nlink:
                    break
                os.close(self.fd)  # another process's `reap` removed it before it was locked

    def close(self) -> None:
        """Remove the lock file; the segments must be removed before."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        os.close(self.fd)


def segment_path(owner: str, segment: int) -> str:
    """Return the path of an owner's segment."""
    return f"{DIRECTORY}/{owner}{segment:016x}.seg"


def open_segment(pid: int, segment: int) -> tuple[int, str]:
    """Open a segment of a live or dead process for reading; return the descriptor and its owner's prefix.

    Raises:
        ProducerGoneError: There is no such segment.
        UntrustedFileError: There is something at its place that is not this user's segment.
    """
    owner = f"xfer-{user()}-{pid}-"
    path = segment_path(owner, segment)
    try:
        fd = open_own(path, os.O_RDONLY)
    except FileNotFoundError as error:
        raise ProducerGoneError(f"{path} is gone: process {pid} has exited or freed the segment") from error
    return fd, owner


def is_locked(owner: str) -> bool:
    """Return whether a lock file with this prefix is held."""
    return any(_held(entry) for entry in os.listdir(DIRECTORY) if entry.startswith(owner) and entry.endswith(".alive"))


def listing() -> list[tuple[int, str, bool]]:
    """Return (process id, path, owner lives) for every named file of this user."""
    mine = [match for entry in sorted(os.listdir(DIRECTORY)) if (match := _PATTERN.fullmatch(entry))]
    mine = [match for match in mine if int(match[1]) == user() and is_own(f"{DIRECTORY}/{match[0]}")]
    living = {match[2] for match in mine if match[4] == "alive" and _held(match[0])}
    return [(int(match[2]), f"{DIRECTORY}/{match[0]}", match[2] in living) for match in mine]


def strangers() -> list[str]:
    """Return the paths that have a name of this user's files and are not this user's."""
    starts = f"xfer-{user()}-", f"{TOPIC}{user()}-"
    paths = [f"{DIRECTORY}/{entry}" for entry in sorted(os.listdir(DIRECTORY)) if entry.startswith(starts)]
    return [path for path in paths if not is_own(path)]


def reap() -> list[str]:
    """Remove the files of dead processes of this user; return the paths."""
    removed = []
    for _, path, alive in listing():
        if not alive:
            with contextlib.suppress(FileNotFoundError, BlockingIOError, UntrustedFileError), _unlocked(path):
                os.unlink(path)
                removed.append(path)
    return removed


@contextlib.contextmanager
def _unlocked(path: str) -> Iterator[None]:
    """Hold a file's lock for a block, so that a process that has just made the file notices; raise if held."""
    fd = open_own(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def _held(entry: str) -> bool:
    try:
        fd = open_own(f"{DIRECTORY}/{entry}", os.O_RDONLY)
    except (FileNotFoundError, UntrustedFileError):
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
