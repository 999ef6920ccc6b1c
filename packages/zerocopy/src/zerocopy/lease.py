"""Who still needs a segment file, and its removal when nobody does; knows nothing of what is in the file.

A lease is a shared flock on the file. The kernel drops it when the last descriptor of its holder closes, however the
holder ends, so nothing here depends on exit handlers: a process that is killed gives its leases back too. A small
process of its own, the caretaker, waits for an exclusive lock on each file that its publisher made, and then removes
the file.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zerocopy.errors import SegmentGoneError, ZerocopyError

try:
    import fcntl
except ImportError:  # Windows has no flock
    fcntl = None  # type: ignore[assignment]

TEMPORARY = ".part"

# Runs without site-packages: it lives as long as the segments do, and has to stay small. A line "P" takes charge of the
# file P; a line "!P" says that its publisher is done with it. Closing the pipe says so of all of them.
_CARETAKER = """
import _thread, fcntl, os, sys
if os.fork(): os._exit(0)
os.chdir("/")
files, left = [], []
def remove(path):
    lock = _thread.allocate_lock(); lock.acquire(); left.append(lock)
    def wait():
        opened = []
        try:
            fd = os.open(path, os.O_RDONLY); opened.append(fd)
            fcntl.flock(fd, fcntl.LOCK_EX)
            mine, there = os.fstat(fd), os.stat(path)
            if (mine.st_ino, mine.st_dev) == (there.st_ino, there.st_dev): os.unlink(path)
            folder = os.open(os.path.dirname(path), os.O_RDONLY); opened.append(folder)
            fcntl.flock(folder, fcntl.LOCK_EX)
            link = path.rsplit("@", 1)[0] + "@current"
            if os.path.islink(link) and os.readlink(link) == os.path.basename(path): os.unlink(link)
        except OSError: pass
        finally:
            for fd in opened: os.close(fd)
            lock.release()
    _thread.start_new_thread(wait, ())
for line in sys.stdin:
    line = line[:-1]
    if line[0] != "!": files.append(line)
    elif line[1:] in files:
        files.remove(line[1:]); remove(line[1:])
for path in files: remove(path)
for lock in left: lock.acquire()
"""


class Caretaker:
    """Starts the process that removes this process's segments once their last reader has left."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = 0
        self._pipe: int | None = None
        self._charges: set[str] = set()
        self._starting: subprocess.Popen[bytes] | None = None

    def take(self, path: Path) -> None:
        """Put a file in its charge; call this before the file is made."""
        with self._lock:
            if self._pipe is None or self._owner != os.getpid():  # a forked child starts its own
                self._start()
            self._charges.add(str(path))
            self._tell(str(path))

    def publisher_done(self, path: Path) -> None:
        """Say that the publisher has dropped its own lease on a file."""
        with self._lock:
            if self._owner != os.getpid() or str(path) not in self._charges:
                return
            if self._starting is not None:
                self._starting.wait()  # by now it has long forked, and this collects the half that ended
                self._starting = None
            self._charges.discard(str(path))
            self._tell(f"!{path}")
            if not self._charges and self._pipe is not None:
                os.close(self._pipe)  # it ends when the last reader of the last file has left
                self._pipe = None

    def after_fork_in_child(self) -> None:
        """Take a new lock: one that another thread held at the fork stays locked for ever in the child."""
        self._lock = threading.Lock()

    def _start(self) -> None:
        read, self._pipe = os.pipe()
        self._owner = os.getpid()
        self._charges = set()
        command = [sys.executable, "-I", "-S", "-c", _CARETAKER]
        try:
            # It forks at once and the parent ends: the caretaker is nobody's child, so killing our children spares it.
            self._starting = subprocess.Popen(
                command, stdin=read, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
        finally:
            os.close(read)

    def _tell(self, line: str) -> None:
        if self._pipe is None:
            return
        try:
            os.write(self._pipe, f"{line}\n".encode())
        except BrokenPipeError:  # somebody killed it; a later publish sweeps up what it would have removed
            os.close(self._pipe)
            self._pipe = None


caretaker = Caretaker()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=caretaker.after_fork_in_child)


def require_leases() -> None:
    """Refuse to publish where leases cannot work.

    Raises:
        ZerocopyError: the operating system has no flock.
    """
    if fcntl is None:
        raise ZerocopyError("segment files need flock, which this operating system lacks; use Linux or macOS")


def share(fd: int, path: Path) -> None:
    """Take a lease on an open segment.

    Raises:
        SegmentGoneError: the file is being removed, or has been since it was opened.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        raise SegmentGoneError(f"{path} is being removed: its publisher and every reader have left") from error
    if os.fstat(fd).st_nlink == 0:
        raise SegmentGoneError(f"{path} was removed: its publisher and every reader have left; publish the model again")


def create(path: Path) -> int:
    """Make a file and take a lease on it; return the descriptor."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_SH)
        if os.fstat(fd).st_nlink:
            return fd
        os.close(fd)  # a sweep met it before the lease and took it for a killed process's


def remove_if_free(path: Path) -> bool:
    """Remove a file that nobody holds a lease on; return whether it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink:  # else what is at the path now is another file
            path.unlink(missing_ok=True)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


@contextmanager
def gate(path: Path) -> Iterator[None]:
    """Let one process of the machine at a time into a block; the file that stands for it goes when nobody is inside."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            break
        os.close(fd)  # whoever was inside has taken it away; there is a new one by now, or none
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, among all processes of the machine, for the length of a block."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
